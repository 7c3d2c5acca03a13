"""The evaluation loop: every image of a split once through a network, the answers into the task's metrics.

`vssm validate`, `vssm test`, `vssm report`, `vssm demo` and `Predictor.evaluate` run this one; the validation within a
training feeds the same metrics from Lightning's loop.
"""

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import nn

from vssm.data.loaders import batches_within, evaluation_loader, normalised, size_of
from vssm.data.padded import PaddedImages
from vssm.data.splits import Splits
from vssm.data.unreadable import Unreadable, check_share
from vssm.inference.results import StoredResults
from vssm.settings import TRAINING_PRECISIONS, DataSettings
from vssm.tasks.task import Quality, Task

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on a split, and what the figures are about.

    planned: images that were to be evaluated, the `unreadable` ones included. seconds: of the whole loop, reading
    included. notes: sentences about the images that a reader must not miss.
    """

    quality: Quality
    splits: Splits
    planned: int
    unreadable: tuple[Unreadable, ...]
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.quality.images / self.seconds

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.unreadable:
            return self.splits.notes
        path, reason, _ = self.unreadable[0]
        counted = f"{len(self.unreadable)} of {self.planned} images cannot be read and are left out"
        return (*self.splits.notes, f"{counted}, for example {path}: {reason}")

    def metrics(self) -> dict[str, float]:
        """As a training logs them, and `val_unreadable`."""
        return {**self.quality.logged(), "val_unreadable": len(self.unreadable)}


def evaluate(
    model: nn.Module,
    task: Task,
    splits: Splits,
    *,
    batch_size: int = 64,
    workers: int = 0,
    limit_batches: int | float | None = None,
    precision: str = "32-true",
    channels_last: bool = False,
    details: int = 0,
    kind: str = "validation",
    progress: Progress | None = None,
    data: DataSettings | None = None,
    results: StoredResults | None = None,
) -> Evaluation:
    """Evaluates `model`, in the mode and on the device that it is in, on the images of `splits.val`.

    Args:
        limit_batches: the first batches only: a count or (a float) a share
        precision: 32-true, bf16-mixed, 16-mixed or 64-true (by a copy of the model), as a training has it
        details: above 0: metrics that cost memory per image too, with at most so many examples of mistakes
        kind: what the images are called in a message
        progress: called with (images done, planned) after each batch
        results: the file where the rows of each image go, and where those of an interrupted evaluation are
        data: how the network is applied, where the task has several ways (scales, windows), and `max_unreadable`; the
            defaults when not given

    Images that cannot be read are left out. Raises ValueError when they are more than that share (TooManyUnreadable),
    when the limit leaves no image, or when the metrics have a problem, non-finite outputs for example.
    """
    device = next(model.parameters()).device
    loader = evaluation_loader(
        splits.val,
        batch_size,
        workers=workers,
        pin_memory=device.type == "cuda",
        collate=task.collate,
    )
    batches = batches_within(len(loader), limit_batches)
    if batches == 0:
        raise ValueError(f"no {kind} image is left to evaluate: a limit of {limit_batches} of {len(loader)} batches")
    planned = min(size_of(splits.val), batches * batch_size)
    normalise = splits.preprocess.transform().normalise
    metrics = task.metrics(splits, details)
    assert isinstance(metrics, nn.Module)
    metrics.to(device)
    if precision == "64-true":
        model = copy.deepcopy(model).double()
    infer = task.inference(model, data)
    unreadable: list[Unreadable] = []
    allowed = (data or DataSettings()).max_unreadable
    start, done = time.perf_counter(), 0
    with torch.inference_mode(), _computing_in(precision, device):
        for batch in islice(loader, batches):
            unreadable += batch.unreadable
            if batch.unreadable:
                check_share(unreadable, planned, allowed, kind)
            if len(batch.targets):
                moved = batch._replace(images=_to(batch.images, device), targets=_to(batch.targets, device))
                images = normalised(moved, normalise).images
                if precision == "64-true" and isinstance(images, torch.Tensor):
                    images = images.double()
                if channels_last and isinstance(images, torch.Tensor):
                    images = images.contiguous(memory_format=torch.channels_last)
                outputs = None if results is None else results.stored(batch)
                outputs = infer(images) if outputs is None else outputs
                metrics.update(outputs, moved)
                if results is not None:
                    results.write(batch, cast(Any, metrics).rows)
            done += len(batch.targets) + len(batch.unreadable)
            if progress is not None:
                progress(done, planned)
    seconds = time.perf_counter() - start
    if results is not None:
        results.finish()
    quality = metrics.compute()
    if (problem := quality.problem()) is not None:
        raise ValueError(f"{quality.images} {kind} images: {problem}")
    return Evaluation(quality, splits, planned, tuple(unreadable), seconds)


def _to(values: Any, device: torch.device) -> Any:
    """Tensors, and lists or dictionaries of them, on a device."""
    if isinstance(values, torch.Tensor):
        return values.to(device, non_blocking=True)
    if isinstance(values, PaddedImages):
        return values.to(device)
    if isinstance(values, dict):
        return {name: _to(value, device) for name, value in cast(dict[Any, Any], values).items()}
    if isinstance(values, list | tuple):
        return [_to(value, device) for value in cast(list[Any], values)]
    return values


def _computing_in(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    if precision not in TRAINING_PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected 32-true, bf16-mixed, 16-mixed or 64-true")
    dtype: torch.dtype = getattr(torch, TRAINING_PRECISIONS[precision])
    if dtype is torch.float16 and device.type == "cpu":
        raise ValueError(f"precision {precision} needs a GPU; on the CPU choose bf16-mixed or 32-true")
    return torch.autocast(device.type, dtype) if dtype.itemsize == 2 else contextlib.nullcontext()
