"""Where the time of a network goes, operator by operator, beside what this machine could do.

    python benchmarks/profile_model.py vmamba_tiny                              inference, float32, one image
    python benchmarks/profile_model.py spatial_mamba_tiny --dtype bfloat16 --batch 8
    python benchmarks/profile_model.py convnext_tiny --dtype autocast --training

Processor time, so that other programs disturb little; the least of `--runs` of each call. "bound" is the time that the
operator's multiply-adds take at the speed of a large matrix product of this dtype, or its tensors at the speed of a
copy, whichever is longer. What is under no operator is Python, and what our operators call in the core directly.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import vssm  # noqa: F401 (registers the models)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "autocast": torch.float32}


@dataclass
class Call:
    """One call of an operator: seconds of processor time, multiply-adds, bytes of its tensors."""

    name: str
    seconds: float
    macs: int
    bytes: int


class Record(TorchDispatchMode):
    """Every call of an operator in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = time.process_time()
        result = func(*args, **(kwargs or {}))
        seconds = time.process_time() - begin
        count = flop_registry.get(func.overloadpacket)
        macs = 0 if count is None else count(*args, **(kwargs or {}), out_val=result) // 2
        name = str(func.overloadpacket)
        moved = 0 if _is_view(func) else sum(map(_bytes, tree_leaves((args, kwargs, result))))
        self.calls.append(Call(name, seconds, macs, moved))
        return result


def _is_view(func: Any) -> bool:
    return any(
        argument.alias_info is not None and not argument.alias_info.is_write for argument in func._schema.returns
    )


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, torch.Tensor) else 0


def least(run: Callable[[], object], runs: int) -> float:
    """Seconds of processor time of the quickest of several runs."""
    return min(_timed(run) for _ in range(runs))


def _timed(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def ceilings(dtype: torch.dtype, runs: int) -> tuple[float, float]:
    """Multiply-adds per second of a large matrix product, bytes per second of a large copy (read and written)."""
    a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    source = torch.ones(1 << 25, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 1024**3 / least(lambda: a @ b, runs), 2 * source.numel() / least(lambda: target.copy_(source), runs)


def profile(run: Callable[[], object], runs: int) -> tuple[list[Call], float]:
    """The calls, each with the least of its times, and the seconds of a whole run without recording."""
    run()
    whole = least(run, runs)
    best: list[Call] = []
    for _ in range(runs):
        with Record() as record:
            run()
        if best:
            for call, again in zip(best, record.calls, strict=True):
                call.seconds = min(call.seconds, again.seconds)
        best = best or record.calls
    return best, whole


def table(calls: Iterable[Call], whole: float, gemm: float, copy: float, rows: int) -> str:
    groups: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        groups[call.name].append(call)
    lines = [f"{'operator':<36}{'calls':>6}{'ms':>9}{'share':>8}{'GMAC/s':>9}{'GB/s':>8}{'bound':>8}"]
    ordered = sorted(groups.items(), key=lambda item: -sum(call.seconds for call in item[1]))
    for name, group in ordered[:rows]:
        seconds = sum(call.seconds for call in group)
        macs, moved = sum(call.macs for call in group), sum(call.bytes for call in group)
        bound = sum(max(call.macs / gemm, call.bytes / copy) for call in group)
        rates = f"{macs / seconds * 1e-9:9.1f}" if macs else " " * 9
        lines.append(
            f"{name:<36}{len(group):>6}{seconds * 1e3:9.2f}{seconds / whole:8.1%}{rates}"
            f"{moved / seconds * 1e-9:8.1f}{bound / seconds:8.0%}"
        )
    rest = whole - sum(call.seconds for group in groups.values() for call in group)
    lines.append(f"{'under no operator':<42}{rest * 1e3:9.2f}{rest / whole:8.1%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--training", action="store_true", help="forward and backward")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    dtype, autocast = DTYPES[chosen.dtype], chosen.dtype == "autocast"
    model = timm.create_model(chosen.model).train(chosen.training).to(dtype)
    images = torch.randn(chosen.batch, 3, chosen.size, chosen.size).to(dtype)

    def run() -> None:
        with torch.set_grad_enabled(chosen.training), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(images).float().sum()
        if chosen.training:
            model.zero_grad()
            loss.backward()

    gemm, copy = ceilings(torch.bfloat16 if autocast else dtype, chosen.runs)
    calls, whole = profile(run, chosen.runs)
    mode = "forward and backward" if chosen.training else "inference"
    print(f"{chosen.model}, {chosen.dtype}, B={chosen.batch}, {mode}, {chosen.threads} thread: {whole * 1e3:.1f} ms")
    print(f"ceilings here: {gemm * 1e-9:.0f} GMAC/s of a product of 1024 x 1024, {copy * 1e-9:.1f} GB/s of a copy")
    print(table(calls, whole, gemm, copy, chosen.rows))


if __name__ == "__main__":
    main()
