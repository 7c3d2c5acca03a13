"""Naming images: batched, in the order given, a file that cannot be read reported in its place."""

import math
import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from vssm.data.image import UnreadableImage, open_image
from vssm.data.parallel import map_ahead
from vssm.data.preprocess import Preprocess


@dataclass(frozen=True)
class Prediction:
    """One image's classes, most probable first; `error` says why there are none."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict(
    model: nn.Module,
    preprocess: Preprocess,
    classes: Sequence[str],
    files: Iterable[Path | UnreadableImage],
    top_k: int = 5,
    batch_size: int = 32,
    threads: int | None = None,
) -> Generator[Prediction, None, None]:
    """Yields one Prediction per file, in order. Mode and device of the model are kept.

    `threads` (one per core when not given) read the next batch while the model works on this one; no more than two
    batches are held. An UnreadableImage among the files becomes the Prediction that says so.
    """
    transform = preprocess.transform()

    def read(file: Path | UnreadableImage) -> tuple[Path, Tensor | str]:
        if isinstance(file, UnreadableImage):
            return file.path, file.reason
        try:
            return file, transform.pixels(open_image(file, preprocess.channels, transform.min_side))
        except UnreadableImage as error:
            return file, error.reason

    device = next(model.parameters()).device
    images = map_ahead(read, files, threads or os.cpu_count() or 1, ahead=2 * batch_size)
    while batch := list(islice(images, batch_size)):
        pixels = [image for _, image in batch if isinstance(image, Tensor)]
        named = iter(_classify(model, transform.normalise(torch.stack(pixels).to(device)), top_k) if pixels else ())
        for path, image in batch:
            if isinstance(image, str):
                yield Prediction(path, error=image)
                continue
            probable = [(classes[index], value) for index, value in next(named)]
            if all(math.isfinite(value) for _, value in probable):
                yield Prediction(path, tuple(probable))
            else:
                yield Prediction(path, error="the model gives NaN or infinity")


@torch.inference_mode()
def _classify(model: nn.Module, images: Tensor, top_k: int) -> list[list[tuple[int, float]]]:
    """Index and probability of the most probable classes of each image."""
    probabilities = model(images).float().softmax(-1)
    values, indices = probabilities.topk(min(top_k, probabilities.shape[-1]))
    return [list(zip(*pair, strict=True)) for pair in zip(indices.tolist(), values.tolist(), strict=True)]
