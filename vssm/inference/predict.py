"""Predictions for images: batched, in the order given; a file that cannot be read is reported in order too."""

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from vssm.data.image import UnreadableImage, as_read, open_image
from vssm.data.parallel import map_ahead
from vssm.data.preprocess import Preparation
from vssm.settings import DataSettings
from vssm.tasks import TASKS
from vssm.tasks.task import Task

_Read = tuple[Tensor, tuple[int, int]]  # pixels of the input, (H, W) of the image


@dataclass(frozen=True)
class Prediction:
    """What a network finds in one image; `error` is why there is nothing.

    classes: of a classifier, (name, probability), most probable first.
    result: as the task has it: the same classes, `Detections` of objects, a map of labels. `None` with an error.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    result: Any = None


def predict(
    model: nn.Module,
    preprocess: Preparation,
    classes: Sequence[str],
    files: Iterable[Path | UnreadableImage | Image.Image],
    top_k: int = 5,
    batch_size: int = 32,
    threads: int | None = None,
    task: Task = TASKS["classification"],
    data: DataSettings | None = None,
) -> Generator[Prediction, None, None]:
    """Yields one Prediction per file, in order. Mode and device of the model are kept.

    `threads` (one per core when not given) read the next batch while the model works on this one; no more than two
    batches are held. An UnreadableImage among the files becomes a Prediction with that error; an image in memory is
    named by its file, where it knows it, or by its index.
    """
    transform = preprocess.transform()

    def prepare(image: Image.Image) -> _Read:
        return transform.pixels(image), (image.height, image.width)

    def read(numbered: tuple[int, Path | UnreadableImage | Image.Image]) -> tuple[Path, _Read | str]:
        index, file = numbered
        if isinstance(file, UnreadableImage):
            return file.path, file.reason
        if isinstance(file, Image.Image):
            name = Path(getattr(file, "filename", "") or f"image {index}")
            try:
                return name, prepare(as_read(file, preprocess.channels, name))
            except UnreadableImage as error:
                return name, error.reason
        try:
            return file, prepare(open_image(file, preprocess.channels, transform.min_side))
        except UnreadableImage as error:
            return file, error.reason

    device, infer = next(model.parameters()).device, task.inference(model, data)

    @torch.inference_mode()
    def found(pairs: Sequence[_Read]) -> list[Any]:
        images: Any = preprocess.batch([pixels for pixels, _ in pairs], [size for _, size in pairs], device)
        return task.results(infer(images), classes, top_k)

    images = map_ahead(read, enumerate(files), threads or os.cpu_count() or 1, ahead=2 * batch_size)
    while batch := list(islice(images, batch_size)):
        pairs = [image for _, image in batch if not isinstance(image, str)]
        results = iter(found(pairs) if pairs else ())
        for path, image in batch:
            if isinstance(image, str):
                yield Prediction(path, error=image)
                continue
            result = next(results)
            if result is None:
                yield Prediction(path, error="the model gives NaN or infinity")
            else:
                yield Prediction(path, cast(Any, result) if isinstance(result, tuple) else (), result=result)
