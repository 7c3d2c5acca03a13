"""Throughput and peak memory of a table's rows on this machine.

The speed of a machine drifts within minutes. So each row runs in turns with the row that it is compared with, in one
process, and its ratio is the median over the turns. Memory is measured in a process of its own per row.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vssm.tables.count import build
from vssm.tables.table import Row

LEAST_TURNS = 3


class MeasureError(RuntimeError):
    """A row could not be measured here."""


@dataclass(frozen=True)
class Settings:
    """How to measure: one batch of random images, float32.

    training: a step of forward, loss and backward, in place of inference.
    image_size: None for that of each row.
    threads: on the CPU; None leaves torch's.
    seconds: for the turns of each row and its reference together, at least `LEAST_TURNS` turns.
    """

    batch: int = 1
    image_size: int | None = None
    threads: int | None = None
    seconds: float = 10.0
    training: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Measured:
    """images_per_second and ratio (to the reference) are medians over `turns`; peak_mb is None where unknown."""

    images_per_second: float
    ratio: float
    turns: int
    peak_mb: float | None
    training: bool


def measure(rows: Sequence[Row], reference: Row, settings: Settings) -> Iterator[tuple[str, Measured]]:
    """(name, what was measured) for every one of the rows that can be built, one after the other.

    Raises:
        ValueError: no package has the reference.
        MeasureError: a row does not fit into the memory, or its process ended otherwise.
    """
    if reference.model is None:
        raise ValueError(f"row {reference.name} cannot be measured, as no package has it; choose another to relate to")
    with _threads(settings.threads):
        baseline = _Runner(reference, settings)
        for row in rows:
            if row.model is None:
                continue
            peak = peak_memory(row, settings)
            try:
                runner = baseline if row.name == reference.name else _Runner(row, settings)
                yield row.name, _in_turns(runner, baseline, peak, settings)
            except torch.OutOfMemoryError as error:
                raise MeasureError(f"row {row.name} does not fit beside {reference.name}; a smaller --batch") from error


def _in_turns(runner: "_Runner", baseline: "_Runner", peak: float | None, settings: Settings) -> Measured:
    alone = runner is baseline
    for each in (runner, baseline)[: 1 if alone else 2]:
        each.seconds()  # the first call compiles, allocates and fills caches
    mine, ratios, end = [], [], time.perf_counter() + settings.seconds
    while len(mine) < LEAST_TURNS or time.perf_counter() < end:
        other = None if alone else baseline.seconds()
        mine.append(runner.seconds())
        ratios.append(1.0 if other is None else other / mine[-1])
    speed = settings.batch / statistics.median(mine)
    return Measured(speed, statistics.median(ratios), len(mine), peak, settings.training)


class _Runner:
    """A network and a batch for it."""

    def __init__(self, row: Row, settings: Settings):
        self.device = torch.device(settings.device)
        self.model = build(row, settings.image_size).to(self.device).train(settings.training)
        size = row.size if settings.image_size is None else settings.image_size
        height, width = (size, size) if isinstance(size, int) else size
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(settings.batch, 3, height, width, generator=generator).to(self.device)
        self.step: Callable[[nn.Module, Tensor], None] = _train if settings.training else _infer

    def seconds(self) -> float:
        self._wait()
        start = time.perf_counter()
        self.step(self.model, self.images)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def _infer(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _train(model: nn.Module, images: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    scores = model(images)
    each = scores if isinstance(scores, tuple) else (scores,)  # a segmentation model has auxiliary ones
    torch.stack([x.float().logsumexp(1).mean() for x in each]).sum().backward()


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- memory ----


def peak_memory(row: Row, settings: Settings) -> float | None:
    """Peak MB of two calls, the network included, above what the process takes before it is built.

    Of the device's allocator on an accelerator, resident memory on the CPU; None where the system does not say it.
    """
    message = {"row": [row.model, row.options, row.upernet, row.size], "settings": vars(settings)}
    command = [sys.executable, "-m", "vssm.tables.measure", json.dumps(message)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MeasureError(f"row {row.name} could not be measured ({last}); a smaller --batch takes less memory")
    return json.loads(done.stdout.splitlines()[-1])


def _own_peak_memory(message: str) -> float | None:
    stored = json.loads(message)
    settings = Settings(**stored["settings"])
    (model, options, upernet, size), device = stored["row"], torch.device(settings.device)
    row = Row("", model, options, upernet, tuple(size) if isinstance(size, list) else size)
    with _threads(settings.threads):
        before = _resident_peak(device)
        runner = _Runner(row, settings)
        for _ in range(2):
            runner.seconds()
        after = _resident_peak(device)
    return None if before is None or after is None else after - before


def _resident_peak(device: torch.device) -> float | None:
    """Peak MB so far: of the accelerator, else of this process (Linux: getrusage would start from its parent's)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu":
        return None
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            return int(status.read().split("VmHWM:")[1].split()[0]) / 2**10
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(_own_peak_memory(sys.argv[1])))
