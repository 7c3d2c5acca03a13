"""Whole models compared with Swin, ConvNeXt and the official code: images/s, training steps, memory, threads, size.

    python benchmarks/models.py                       every part, eager
    python benchmarks/models.py --part eval train     some parts
    python benchmarks/models.py --dtype float32 bfloat16 autocast     also with weights in bfloat16, and under autocast
    python benchmarks/models.py --only efficientvim_m2 fastvit_t8     other models of timm in the place of ours
    python benchmarks/models.py --compiled            also with torch.compile (slow to start)
    python benchmarks/models.py --official DIR        also the official VMamba-T, from a checkout of its repository
    python benchmarks/models.py --path torch          our models without the C++ core

All models of one row alternate in one process, so that ratios are robust to drifts of the machine's speed. Medians of
`--runs` rounds, or with `--cpu-time` of processor time, which other programs disturb less. Random weights, 224x224,
float32 unless `--dtype` says otherwise. Memory is measured in a separate process per model.
"""

import argparse
import contextlib
import importlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import timm
import torch

import vssm

OURS = ("vmamba_tiny", "spatial_mamba_tiny")
PEERS = ("swin_tiny_patch4_window7_224", "convnext_tiny")
OFFICIAL = "official VMamba-T"
SHORT = {"swin_tiny_patch4_window7_224": "swin_tiny"}
GOALS = {  # minimum of each ratio: (part, model, batch) -> {peer: ratio}
    ("eval", "vmamba_tiny", 1): {OFFICIAL: 4.0, PEERS[0]: 1.2, PEERS[1]: 1.0},
    ("eval", "vmamba_tiny", 8): {OFFICIAL: 5.0, PEERS[0]: 1.4, PEERS[1]: 1.0},
    ("eval", "spatial_mamba_tiny", 1): {PEERS[0]: 1.2, PEERS[1]: 1.0},
    ("eval", "spatial_mamba_tiny", 8): {PEERS[0]: 1.2, PEERS[1]: 1.0},
    ("train", "vmamba_tiny", 8): {PEERS[0]: 1.15, PEERS[1]: 0.95},
    ("train", "spatial_mamba_tiny", 8): {PEERS[0]: 1.1, PEERS[1]: 0.9},
}


def create(name: str, official: Path | None, size: int = 224) -> torch.nn.Module:
    if name.startswith("swin"):  # its windows and position biases depend on the image size
        return timm.create_model(name, img_size=size)
    if name != OFFICIAL:
        return timm.create_model(name)
    assert official is not None
    sys.path.insert(0, str(official / "classification"))
    module = importlib.import_module("models.vmamba")
    # Without its CUDA extensions the official code uses its pure-torch scan; only this context manager needs a GPU.
    importlib.import_module("models.csm_triton").torch.cuda.device = lambda _: contextlib.nullcontext()
    return module.vmamba_tiny_s1l8()


def evaluate(model, images, autocast=False):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(images)


def train_step(model, images, autocast=False):
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(images)
    logits.float().logsumexp(1).sum().backward()


def in_turn(functions: dict, runs: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Median seconds of each function, called alternately."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(runs):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def speed(
    part: str, names: list[str], batch: int, args, size: int = 224, compiled: bool = False, dtype: str = "float32"
) -> dict[str, float]:
    """Images per second of each model. dtype "autocast": bfloat16 where torch's autocast takes it."""
    step = evaluate if part == "eval" else train_step
    held = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(held)
    functions = {}
    for name in names:
        if name == OFFICIAL and part == "train":
            continue  # minutes per step: its indexed loop is quadratic in the length
        model = create(name, args.official, size)
        model.train(part == "train").to(held)
        if compiled and name != OFFICIAL:
            model = torch.compile(model)
        functions[name] = lambda model=model: step(model, images, dtype == "autocast")
    with vssm.ops.use(args.path) if args.path else contextlib.nullcontext():
        seconds = in_turn(functions, args.runs, time.process_time if args.cpu_time else time.perf_counter)
    return {name: batch / s for name, s in seconds.items()}


def print_ratios(part: str, batch: int, found: dict[str, float], label: str) -> None:
    print(f"\n{label}: images/s " + ", ".join(f"{SHORT.get(n, n)} {v:.2f}" for n, v in found.items()))
    for ours in (name for name in found if name not in PEERS and name != OFFICIAL):
        for peer in (p for p in found if p in PEERS or p == OFFICIAL):
            goal = GOALS.get((part, ours, batch), {}).get(peer)
            ratio = found[ours] / found[peer]
            verdict = "" if goal is None else f"  goal {goal:.2f}  {'ok' if ratio >= goal else 'SHORT'}"
            print(f"  {ours:<20} / {SHORT.get(peer, peer):<18} x{ratio:.2f}{verdict}")


def memory_of(name: str, part: str, batch: int) -> float:
    """Peak resident MB of one model in a separate process, minus that of the imports."""
    command = [sys.executable, __file__, "--memory-of", name, "--part", part, "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_kb() -> int:
    """Peak resident size of this process. getrusage alone would start from that of the parent it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


def _measure_memory(name: str, part: str, batch: int) -> None:
    torch.set_num_threads(1)
    before = peak_kb()
    model = timm.create_model(name).train(part == "train")
    images = torch.randn(batch, 3, 224, 224)
    for _ in range(2):
        (evaluate if part == "eval" else train_step)(model, images)
    print((peak_kb() - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("eval", "train", "memory", "threads", "resolution")
    parser.add_argument("--part", nargs="+", default=parts, choices=parts)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=("float32", "bfloat16", "autocast"))
    parser.add_argument("--cpu-time", action="store_true", help="measure processor time (one thread)")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--official", type=Path)
    parser.add_argument("--path", choices=("torch", "core"))
    parser.add_argument("--only", nargs="+", help="models to compare with the peers", default=list(OURS))
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        return _measure_memory(args.memory_of, args.part[0], args.batch[0])

    results: dict[str, dict] = {}
    names = [*args.only, *PEERS] + ([OFFICIAL] if args.official else [])
    torch.set_num_threads(1)
    print(vssm.ops.explain())
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread, median of {args.runs}")
    for part in ("eval", "train"):
        if part not in args.part:
            continue
        for batch in args.batch if part == "eval" else args.batch[-1:]:
            for dtype, compiled in product(args.dtype, (False, True) if args.compiled else (False,)):
                label = f"{part} B={batch}{' compiled' if compiled else ''}{'' if dtype == 'float32' else ' ' + dtype}"
                results[label] = speed(part, names, batch, args, compiled=compiled, dtype=dtype)
                print_ratios(part if dtype == "float32" else dtype, batch, results[label], label)
    if "resolution" in args.part:
        small = speed("eval", names, 1, args)
        large = speed("eval", names, 1, args, size=768)
        results["eval 768"] = large
        print_ratios("resolution", 1, large, "eval B=1 at 768x768")
        for name in names:
            ratio = small[name] / large[name]
            print(f"  {SHORT.get(name, name):<20} time(768)/time(224) = {ratio:.2f} (pixels: 11.76)")
    if "threads" in args.part:
        one = speed("eval", [*args.only, *PEERS], 8, args)
        torch.set_num_threads(2)
        two = speed("eval", [*args.only, *PEERS], 8, args)
        torch.set_num_threads(1)
        results["two threads / one"] = {name: two[name] / one[name] for name in one}
        print("\ntwo threads against one, eval B=8 (goal: 1.70, or swin_tiny's if lower)")
        for name in one:
            print(f"  {SHORT.get(name, name):<20} x{two[name] / one[name]:.2f}")
    if "memory" in args.part:
        for part in ("eval", "train"):
            found = {name: memory_of(name, part, 8) for name in [*args.only, *PEERS]}
            results[f"memory {part} B=8, MB"] = found
            print(f"\npeak memory, {part} B=8, MB above the imports (goal: at most 1.10 of swin_tiny)")
            for name, value in found.items():
                print(f"  {SHORT.get(name, name):<20} {value:7.0f}  x{value / found[PEERS[0]]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
