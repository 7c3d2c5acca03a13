"""What each operator of the C++ core gains: whole models with one switched off, over the same model with all on.

    python benchmarks/ablation.py                                  every model, batch and mode
    python benchmarks/ablation.py --models vim_tiny --batch 1      some of them
    python benchmarks/ablation.py --cpu-time                       processor time, on a machine that is shared
    python benchmarks/ablation.py --mode eval --dtype bfloat16     what half precision adds, and the operators under it

A ratio of 1.10 says that the model takes 1.10 times as long without that operator. Every run with a switch off stands
between two with all on, and is compared with their mean; a ratio is the median over `--runs` rounds.
Random weights, 224x224, one thread; float32, bfloat16, or float32 under autocast.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch

import vssm
from vssm.ops import dispatch
from vssm.ops.linear import half

MODELS = ("vmamba_tiny", "spatial_mamba_tiny", "vim_tiny")


@contextlib.contextmanager
def without_core(*operators: str) -> Iterator[None]:
    """Run these operators on the path that comes after the core."""
    kept = {name: dispatch._operators[name] for name in operators}
    for name, rules in kept.items():
        dispatch._operators[name] = {path: rule for path, rule in rules.items() if path != "core"}
    dispatch._chosen.clear()
    try:
        yield
    finally:
        dispatch._operators.update(kept)
        dispatch._chosen.clear()


@contextlib.contextmanager
def patched(module, name: str, value) -> Iterator[None]:
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def operators_of(run: Callable[[], None]) -> set[str]:
    """The operators that a run chooses a path for."""
    seen: set[str] = set()
    choose = dispatch.choose

    def recording(op: str, *args, **kwargs):
        seen.add(op)
        return choose(op, *args, **kwargs)

    with patched(dispatch, "choose", recording):
        run()
    return {name for name in seen if "core" in dispatch._operators[name]}


def switches(used: set[str]) -> dict[str, Callable[[], contextlib.AbstractContextManager]]:
    """What can be switched off in a model that calls these operators, by name."""
    groups = {name: [name] for name in sorted(used) if not name.startswith(("ss2d", "selective_scan", "state_fusion"))}
    groups |= {
        "linear and mlp": ["linear", "mlp"],
        "state fusion": ["state_fusion", "state_fusion_readout"],
        "scans": [name for name in used if name.startswith(("ss2d", "selective_scan"))],
        "all of them": sorted(used),
    }
    found: dict[str, Callable] = {}
    for label, names in groups.items():
        present = tuple(name for name in names if name in used)
        if present and (label in present or len(present) > 1 or label.startswith("sca")):
            found[label] = lambda present=present: without_core(*present)
    return found


def step(model: torch.nn.Module, images: torch.Tensor, training: bool, autocast: bool) -> None:
    with torch.inference_mode(not training), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(images)
    if training:
        model.zero_grad(set_to_none=True)
        logits.float().logsumexp(1).sum().backward()


def measure(
    name: str,
    batch: int,
    training: bool,
    runs: int,
    clock: Callable[[], float],
    only: list[str] | None = None,
    dtype: str = "float32",
) -> dict[str, float]:
    """Ratio of each switch: time without, over time with all on."""
    torch.manual_seed(0)
    held = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = timm.create_model(name).train(training).to(held)
    images = torch.randn(batch, 3, 224, 224).to(held)

    def run() -> None:
        step(model, images, training, dtype == "autocast")

    cases = switches(operators_of(run))
    if dtype != "float32" and not training:
        cases["products in place"] = lambda: patched(half, "takes", lambda *_: False)
    cases = {label: off for label, off in cases.items() if only is None or label in only}
    ratios: dict[str, list[float]] = {label: [] for label in cases}

    def seconds() -> float:
        start = clock()
        run()
        return clock() - start

    for round_ in range(runs + 1):  # the first warms up
        before = seconds()
        for label, off in cases.items():
            with off():
                without = seconds()
            after = seconds()
            if round_:
                ratios[label].append(2 * without / (before + after))
            before = after
    return {label: statistics.median(values) for label, values in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--mode", nargs="+", default=("eval", "train"), choices=("eval", "train"))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="some switches, by the names that the table has")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "autocast"))
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor instead of the clock's")
    parser.add_argument("--json", type=Path, help="write every ratio here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(vssm.ops.explain("ss2d"))
    print(f"torch {torch.__version__}, one thread, median of {args.runs} rounds; time without, over time with all on\n")
    columns: dict[str, dict[str, float]] = {}
    clock = time.process_time if args.cpu_time else time.perf_counter
    for name in args.models:
        for mode in args.mode:
            for batch in args.batch:
                label = f"{name}, {args.dtype}, {mode}, B={batch}"
                columns[label] = measure(name, batch, mode == "train", args.runs, clock, args.only, args.dtype)
                print(label + ": " + ", ".join(f"{k} {v:.2f}" for k, v in columns[label].items()), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(columns, indent=1))
    rows = dict.fromkeys(row for found in columns.values() for row in found)
    print("\n| switched off | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for row in rows:
        cells = (f"{found[row]:.2f}" if row in found else "" for found in columns.values())
        print(f"| {row} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
