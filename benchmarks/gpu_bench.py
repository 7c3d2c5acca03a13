"""How gpu.py measures: the options of a run, time, memory, copy bandwidth, and the arguments of a scan."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vssm.ops import gpu, use

Cell = tuple[str, Callable[[], dict[str, Any]]]
STAGES = {1: (56, 96, 6), 2: (28, 192, 12), 3: (14, 384, 24), 4: (7, 768, 48)}  # side, channels, rank of VMamba-T


@dataclass
class Bench:
    """The options of a run, and how it measures."""

    device: torch.device
    smallest: bool
    official: Path | None
    path: str = field(init=False)

    def __post_init__(self):
        self.path = "triton" if gpu.interpreted() else ""

    @property
    def batch(self) -> int:
        return 1 if self.smallest else 128

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ms(self, function: Callable[[], object]) -> float:
        """Median milliseconds: by events on a GPU, and by the clock elsewhere."""
        runs = 1 if self.smallest else 20
        for _ in range(1 if self.smallest else 5):
            function()
        self.synchronize()
        times = []
        for _ in range(runs):
            if self.device.type == "cuda":
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                function()
                end.record()
                torch.cuda.synchronize(self.device)
                times.append(begin.elapsed_time(end))
            else:
                start = time.perf_counter()
                function()
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)

    def peak_mb(self, function: Callable[[], object]) -> float | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        return torch.cuda.max_memory_allocated(self.device) / 2**20

    def copy_bandwidth(self) -> float:
        """Bytes read and written per second by a copy that no cache holds."""
        source = torch.empty((1 << 20) if self.smallest else (1 << 28), device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() * 4 / (1e-3 * self.ms(lambda: target.copy_(source)))

    def forced(self, path: str) -> contextlib.AbstractContextManager:
        return use(path) if path else contextlib.nullcontext()

    @contextlib.contextmanager
    def scanning(self, sequential: bool | None) -> Iterator[None]:
        """The forward scan is sequential, or takes three passes; None lets the GPU decide."""
        gpu.SCAN_SEQUENTIAL = sequential
        try:
            yield
        finally:
            gpu.SCAN_SEQUENTIAL = None


def scan_arguments(bench: Bench, side, channels: int, rank: int, batch: int, dtype=torch.float32, K: int = 4):
    """Arguments of ss2d in channels_last memory; side is an int or (height, width)."""
    g = torch.Generator().manual_seed(0)
    height, width = (side, side) if isinstance(side, int) else side

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(bench.device)

    x = normal(batch, height, width, channels).to(dtype).permute(0, 3, 1, 2)
    weights = normal(K, rank + 2, channels) / channels**0.5, normal(K, channels, rank) / rank**0.5
    return [x, *weights, normal(K, channels) - 2, -torch.exp(0.3 * normal(K * channels, 1)), normal(K * channels)]


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def tensor_bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def time_both(bench: Bench, function, leaves: list[Tensor], bandwidth: float, path: str) -> dict[str, Any]:
    """Forward and backward; the floor is every input and output once at the copy bandwidth."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    with bench.forced(path):
        with torch.no_grad():
            start = time.perf_counter()
            outputs = as_tuple(function(*leaves))
            bench.synchronize()
            first = time.perf_counter() - start
            forward = bench.ms(lambda: function(*leaves))
        out = as_tuple(function(*leaves))
        gy = tuple(torch.ones_like(y) for y in out)
        backward = bench.ms(lambda: torch.autograd.grad(out, leaves, gy, retain_graph=True))
    moved = tensor_bytes(*outputs, *leaves)
    floor, floor_backward = (1e3 * n / bandwidth for n in (moved, moved + tensor_bytes(*leaves)))
    return {
        "forward ms": forward,
        "of floor": floor / forward,
        "backward ms": backward,
        "of floor, backward": floor_backward / backward,
        "first call s": first,
    }
