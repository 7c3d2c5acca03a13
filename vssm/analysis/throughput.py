"""Throughput and peak memory of networks on this machine.

The speed of a machine drifts within minutes. So a network runs in turns with the one that it is compared with, in one
process, and its ratio is the median over the turns.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vssm.ops.native import cpu_threads
from vssm.settings import PRECISIONS

LEAST_TURNS = 3


@dataclass(frozen=True)
class Conditions:
    """How to measure: one batch of random images.

    training: a step of forward, loss and backward, without an optimizer, in place of inference.
    precision: 32-true, bf16-mixed or 16-mixed (autocast; losses are not scaled).
    image_size: None for that of each network.
    threads: on the CPU; None leaves torch's.
    seconds: for the turns of each network and its reference together, at least `LEAST_TURNS` turns.
    """

    batch: int = 1
    image_size: int | None = None
    threads: int | None = None
    seconds: float = 10.0
    training: bool = False
    device: str = "cpu"
    precision: str = "32-true"


@dataclass(frozen=True)
class Measured:
    """images_per_second and ratio (to the reference) are medians over `turns`; peak_mb is None where unknown."""

    images_per_second: float
    ratio: float
    turns: int
    peak_mb: float | None
    training: bool


class Runner:
    """A network on its device and a batch of images of (height, width) for it."""

    def __init__(self, model: nn.Module, size: tuple[int, int], conditions: Conditions, channels: int = 3):
        self.device = torch.device(conditions.device)
        self.model = model.to(self.device).train(conditions.training)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(conditions.batch, channels, *size, generator=generator).to(self.device)
        self.step: Callable[[nn.Module, Tensor], None] = _train if conditions.training else _infer
        self.dtype: torch.dtype = _dtype_of(conditions)

    def seconds(self) -> float:
        """Wall time of one batch."""
        self._wait()
        start = time.perf_counter()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            self.step(self.model, self.images)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def in_turns(runner: Runner, reference: Runner, peak_mb: float | None, conditions: Conditions) -> Measured:
    """What `runner` does in turns with `reference`, which may be itself; `peak_mb` is handed on."""
    alone = runner is reference
    for each in (runner, reference)[: 1 if alone else 2]:
        each.seconds()  # the first call compiles, allocates and fills caches
    mine, ratios, end = [], [], time.perf_counter() + conditions.seconds
    while len(mine) < LEAST_TURNS or time.perf_counter() < end:
        other = None if alone else reference.seconds()
        mine.append(runner.seconds())
        ratios.append(1.0 if other is None else other / mine[-1])
    speed = conditions.batch / statistics.median(mine)
    return Measured(speed, statistics.median(ratios), len(mine), peak_mb, conditions.training)


def peak_of(build: Callable[[], Runner], conditions: Conditions) -> float | None:
    """Peak MB of two calls, the network included, above what this process took before it was built.

    Of the device's allocator on an accelerator, resident memory on the CPU; None where the system does not tell.
    Memory that the process held before hides a peak: measure in a process that has done nothing else.
    """
    device = torch.device(conditions.device)
    with cpu_threads(conditions.threads):
        before = _peak_so_far(device)
        runner = build()
        for _ in range(2):
            runner.seconds()
        after = _peak_so_far(device)
    return None if before is None or after is None else after - before


def _dtype_of(conditions: Conditions) -> torch.dtype:
    if conditions.precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ValueError(f"precision is {conditions.precision!r}; expected one of {known}")
    dtype: torch.dtype = getattr(torch, PRECISIONS[conditions.precision])
    if dtype is torch.float16 and torch.device(conditions.device).type == "cpu":
        raise ValueError("precision 16-mixed needs a GPU; on the CPU choose bf16-mixed or 32-true")
    return dtype


def _infer(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _train(model: nn.Module, images: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    scores = model(images)
    each = scores if isinstance(scores, tuple) else (scores,)  # a segmentation model has auxiliary ones
    torch.stack([x.float().logsumexp(1).mean() for x in each]).sum().backward()


def _peak_so_far(device: torch.device) -> float | None:
    """Peak MB: of the accelerator, else of this process (Linux: getrusage would start from its parent's)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu":
        return None
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            return int(status.read().split("VmHWM:")[1].split()[0]) / 2**10
    except FileNotFoundError:
        return None
