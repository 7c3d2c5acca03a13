"""A network to look into: which one, with which weights, and how images are prepared for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vssm.data.image import StoredImage, open_image
from vssm.data.preprocess import Preparation, Preprocess, published_preprocess
from vssm.inference.checkpoint import is_ours, read_checkpoint
from vssm.inference.predictor import load_predictor, looks_like_a_path
from vssm.tasks import find_task
from vssm.tasks.classification import create_classifier

__all__ = ["Source", "Subject", "parse_source", "read_subject", "untrained"]


@dataclass(frozen=True)
class Source:
    """What a user named: a model, or weights in a file or run directory, or both. One of them may be None."""

    name: str | None
    weights: str | None


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode; of a detector or a segmentation network, its backbone.

    label: what to call it in a figure. architecture: the name of the model. weights: "random weights (seed 0)", or the
    file they come from. classes: names of the outputs, as far as they are known.
    """

    label: str
    architecture: str
    weights: str
    trained: bool
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...] = ()
    task: str = "classification"

    @property
    def input_size(self) -> tuple[int, int, int]:
        return self.preprocess.input_size

    def images(self, files: Sequence[Path | StoredImage]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each file as pixels (H, W, C), uint8, and as the network's input (C, H, W), float32.

        Raises UnreadableImage that names the file.
        """
        transform = self.preprocess.transform()
        device = next(self.model.parameters()).device
        for file in files:
            pixels = transform.pixels(open_image(file, self.preprocess.channels, transform.min_side))
            yield pixels, transform.normalise(pixels.to(device))

    def to(self, device: torch.device | str) -> "Subject":
        return replace(self, model=self.model.to(device))


def parse_source(text: str) -> Source:
    """NAME, RUN_DIR, FILE or NAME=FILE."""
    name, equals, file = text.partition("=")
    if Path(text).exists():
        return Source(None, text)
    if equals:
        return Source(name, file)
    return Source(None, text) if looks_like_a_path(text) else Source(text, None)


def read_subject(source: Source, image_size: int | None = None, seed: int = 0) -> Subject:
    """The network of a source; of a name alone, with random weights.

    image_size: side of the square that images are cropped to, after their shorter side was resized to it; None for the
    model's own size and crop. A network of a fixed size is built for this one.

    Raises OSError or ValueError that names the file or the model when it is not there or does not fit.
    """
    if source.weights is None:
        return untrained(source, image_size, seed)
    predictor = load_predictor(source.weights, source.name)
    file = Path(source.weights).name
    label = predictor.name if source.name is not None else file
    model = getattr(predictor.model, "backbone", predictor.model)
    preprocess = _square(predictor.preprocess, image_size)
    return Subject(label, predictor.name, file, True, model, preprocess, predictor.classes, predictor.task.name)


def untrained(source: Source, image_size: int | None = None, seed: int = 0) -> Subject:
    """The network of a source as it is built, before any training: its weights are drawn with `seed`."""
    torch.random.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    if source.weights is not None and (source.name is None or is_ours(source.weights)):
        stored = read_checkpoint(source.weights)
        network = find_task(stored.settings.task).create_model(
            stored.settings.model, len(stored.classes), stored.preprocess.channels
        )
        name, preprocess = stored.settings.model.name, stored.preprocess
        model = getattr(network, "backbone", network)
    else:
        assert source.name is not None
        name, model, preprocess = source.name, _of_size(source.name, image_size), published_preprocess(source.name)
    words = f"random weights (seed {seed})"
    return Subject(name, name, words, False, model.eval(), _square(preprocess, image_size))


def _square(preprocess: Preparation, image_size: int | None) -> Preprocess:
    """Its normalisation, at a size: squares of the whole shorter side."""
    if image_size is None and isinstance(preprocess, Preprocess):
        return preprocess
    side = 224 if image_size is None else image_size
    size = (preprocess.channels, side, side)
    return Preprocess(size, preprocess.mean, preprocess.std, "bicubic", crop_pct=1.0)


def _of_size(name: str, image_size: int | None) -> nn.Module:
    """Networks of a fixed size take img_size; others have no such argument."""
    if image_size is None:
        return create_classifier(name)
    try:
        return create_classifier(name, img_size=image_size)
    except ValueError as error:
        if "takes no argument" not in str(error) and "no option" not in str(error):
            raise
    return create_classifier(name)
