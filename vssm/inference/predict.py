"""Predictions for images: batched, in the order given; a file that cannot be read is reported in order too."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from vssm.data.image import StoredImage, UnreadableImage, as_read, open_image
from vssm.data.parallel import map_ahead
from vssm.data.preprocess import Preparation
from vssm.data.video import Frame
from vssm.settings import DataSettings
from vssm.tasks import TASKS
from vssm.tasks.task import Task

_Read = tuple[Tensor, tuple[int, int]]  # pixels of the input, (H, W) of the image


@dataclass(frozen=True)
class Prediction:
    """What a network finds in one image; `error` is why there is nothing.

    classes: of a classifier, (name, probability), most probable first.
    result: as the task has it: the same classes, `Detections` of objects, a map of labels. `None` with an error.
    video, frame: where the image is a frame of a video: the file, and the number from 0. `path` is VIDEO#NUMBER then.
    stored: where the image is in shards or in a parquet file. `path` is its name there.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    result: Any = None
    video: Path | None = None
    frame: int | None = None
    stored: StoredImage | None = None


_Named = tuple[Prediction, _Read | str]  # what it will be, and the pixels or why there are none


def predict(
    model: nn.Module,
    preprocess: Preparation,
    classes: Sequence[str],
    files: Iterable[Path | UnreadableImage | StoredImage | Image.Image | Frame],
    top_k: int = 5,
    batch_size: int = 32,
    threads: int | None = None,
    task: Task = TASKS["classification"],
    data: DataSettings | None = None,
) -> Generator[Prediction, None, None]:
    """Yields one Prediction per file, in order. Mode and device of the model are kept.

    `threads` (one per core when not given) read the next batch while the model works on this one; no more than two
    batches are held. An UnreadableImage among the files becomes a Prediction with that error; an image in memory is
    named by its file, where it knows it, or by its index. Of frames, only one at a time is held at its full size.
    """
    transform = preprocess.transform()

    def prepare(image: Image.Image) -> _Read:
        return transform.pixels(image), (image.height, image.width)

    def prepared(image: Image.Image, name: Path) -> _Named:
        try:
            return Prediction(name), prepare(as_read(image, preprocess.channels, name))
        except UnreadableImage as error:
            return Prediction(name), error.reason

    def read(numbered: tuple[int, Path | UnreadableImage | StoredImage | Image.Image | _Named]) -> _Named:
        index, file = numbered
        if isinstance(file, tuple):
            return file
        if isinstance(file, UnreadableImage):
            return Prediction(file.path), file.reason
        if isinstance(file, Image.Image):
            return prepared(file, Path(getattr(file, "filename", "") or f"image {index}"))
        found = Prediction(file.path, stored=file) if isinstance(file, StoredImage) else Prediction(file)
        try:
            return found, prepare(open_image(file, preprocess.channels, transform.min_side))
        except UnreadableImage as error:
            return found, error.reason

    def without_frames() -> Iterator[Path | UnreadableImage | StoredImage | Image.Image | _Named]:
        """Frames are prepared before the next is decoded, and do not wait for a thread at their full size."""
        for file in files:
            if isinstance(file, Frame):
                named, pixels = prepared(file.image, file.name)
                yield replace(named, video=file.video, frame=file.number), pixels
            else:
                yield file

    device, infer = next(model.parameters()).device, task.inference(model, data)

    @torch.inference_mode()
    def found(pairs: Sequence[_Read]) -> list[Any]:
        images: Any = preprocess.batch([pixels for pixels, _ in pairs], [size for _, size in pairs], device)
        return task.results(infer(images), classes, top_k)

    images = map_ahead(read, enumerate(without_frames()), threads or os.cpu_count() or 1, ahead=2 * batch_size)
    while batch := list(islice(images, batch_size)):
        pairs = [image for _, image in batch if not isinstance(image, str)]
        results = iter(found(pairs) if pairs else ())
        for named, image in batch:
            if isinstance(image, str):
                yield replace(named, error=image)
                continue
            result = next(results)
            if result is None:
                yield replace(named, error="the model gives NaN or infinity")
            else:
                yield replace(named, classes=cast(Any, result) if isinstance(result, tuple) else (), result=result)
