"""Classifying images: batched, in the order given; a file that cannot be read is reported in order too."""

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vssm.data.image import UnreadableImage, as_read, open_image
from vssm.data.parallel import map_ahead
from vssm.data.preprocess import Preprocess
from vssm.tasks import TASKS
from vssm.tasks.task import Task


@dataclass(frozen=True)
class Prediction:
    """One image's classes, most probable first; `error` is why there are none."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict(
    model: nn.Module,
    preprocess: Preprocess,
    classes: Sequence[str],
    files: Iterable[Path | UnreadableImage | Image.Image],
    top_k: int = 5,
    batch_size: int = 32,
    threads: int | None = None,
    task: Task = TASKS["classification"],
) -> Generator[Prediction, None, None]:
    """Yields one Prediction per file, in order. Mode and device of the model are kept.

    `threads` (one per core when not given) read the next batch while the model works on this one; no more than two
    batches are held. An UnreadableImage among the files becomes a Prediction with that error; an image in memory is
    named by its file, where it knows it, or by its index.
    """
    transform = preprocess.transform()

    def read(numbered: tuple[int, Path | UnreadableImage | Image.Image]) -> tuple[Path, Tensor | str]:
        index, file = numbered
        if isinstance(file, UnreadableImage):
            return file.path, file.reason
        if isinstance(file, Image.Image):
            name = Path(getattr(file, "filename", "") or f"image {index}")
            try:
                return name, transform.pixels(as_read(file, preprocess.channels, name))
            except UnreadableImage as error:
                return name, error.reason
        try:
            return file, transform.pixels(open_image(file, preprocess.channels, transform.min_side))
        except UnreadableImage as error:
            return file, error.reason

    device = next(model.parameters()).device
    images = map_ahead(read, enumerate(files), threads or os.cpu_count() or 1, ahead=2 * batch_size)
    while batch := list(islice(images, batch_size)):
        pixels = [image for _, image in batch if isinstance(image, Tensor)]
        outputs = _run(model, transform.normalise(torch.stack(pixels).to(device))) if pixels else None
        results = iter(() if outputs is None else task.results(outputs, classes, top_k))
        for path, image in batch:
            if isinstance(image, str):
                yield Prediction(path, error=image)
                continue
            found = next(results)
            yield Prediction(path, found) if found else Prediction(path, error="the model gives NaN or infinity")


@torch.inference_mode()
def _run(model: nn.Module, images: Tensor) -> Any:
    return model(images)
