"""Naming images: batched, in the order given, a file that cannot be read reported in its place."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from vssm.data.image import UnreadableImage
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
    classes: tuple[str, ...],
    paths: Iterable[Path],
    top_k: int = 5,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Yields one Prediction per path, in order, holding one batch at a time. Mode and device of the model are kept."""
    remaining = iter(paths)
    while chunk := list(islice(remaining, batch_size)):
        images: dict[Path, Tensor] = {}
        errors: dict[Path, str] = {}
        for path in chunk:
            try:
                images[path] = preprocess(path)
            except UnreadableImage as error:
                errors[path] = error.reason
        found = _classify(model, list(images.values()), classes, top_k)
        named = dict(zip(images, found, strict=True))
        for path in chunk:
            yield Prediction(path, named.get(path, ()), errors.get(path))


@torch.inference_mode()
def _classify(
    model: nn.Module, images: list[Tensor], classes: tuple[str, ...], top_k: int
) -> list[tuple[tuple[str, float], ...]]:
    if not images:
        return []
    device = next(model.parameters()).device
    probabilities = model(torch.stack(images).to(device)).float().softmax(-1)
    values, indices = probabilities.topk(min(top_k, probabilities.shape[-1]))
    return [
        tuple((classes[index], value) for index, value in zip(row_indices, row_values, strict=True))
        for row_indices, row_values in zip(indices.tolist(), values.tolist(), strict=True)
    ]
