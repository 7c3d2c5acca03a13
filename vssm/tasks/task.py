"""What a task is: everything that a training, an evaluation, a prediction or a report asks for that depends on it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from PIL import Image
from torch import Tensor, nn

from vssm.data.batches import Batch, Collate
from vssm.data.preprocess import Preparation
from vssm.data.splits import Splits, Transform
from vssm.settings import DataSettings, ModelSettings, Settings


class Quality(Protocol):
    """How good a network is on a set of images."""

    @property
    def images(self) -> int: ...

    def logged(self) -> Mapping[str, float]:
        """By the names under which a training logs them (`val_...`), shares in 0..1."""
        ...

    def problem(self) -> str | None:
        """Why these figures mean nothing, if so: a sentence without its subject."""
        ...

    def by_class(self) -> Mapping[str, Sequence[float]]:
        """Figures of each class under their headings (those that begin with % are shares), for a table; none where
        the task shows them otherwise."""
        ...


@dataclass(frozen=True)
class Example:
    """One image of an evaluation: its file, and two pictures of it."""

    file: str
    found: Image.Image
    truth: Image.Image


# Makes the file of `vssm validate --results` of what `Metrics.rows` had of each image that was evaluated.
ResultsWriter = Callable[[TextIO, Iterable[Any]], None]


class Metrics(Protocol):
    """Gathers the answers to all batches of an evaluation, on the device where they are; an `nn.Module`.

    Where the task has a `results_writer`, `rows` is what JSON keeps of each image of the latest batch, and `update`
    takes such rows for outputs, with the same figures in the end.
    """

    def update(self, outputs: Any, batch: Batch) -> None: ...

    def compute(self) -> Quality: ...

    def reset(self) -> None: ...


class Learner(Protocol):
    """The network in training: an `nn.Module` that has it as `model`, with its loss."""

    model: nn.Module

    def training_step(self, images: Any, targets: Any) -> tuple[Tensor, Any]:
        """The loss of a batch, a scalar, and the network's outputs. The inputs may be changed in place."""
        ...

    def running(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Means over a training batch that are worth a look while training, by name; none where they would mislead."""
        ...


class Task(Protocol):
    """One task. To add one: a folder beside `classification`, and a line in `TASKS`.

    name: as in `Settings.task`
    counted: what is counted of each class
    headings: of the logged metrics that are printed, by their names, in order; those that begin with % are shares
    monitor: the logged metric that decides which checkpoint is best; higher is better
    columns: the logged metrics that metrics.csv has, in order
    collate: makes a Batch of its samples
    """

    @property
    def name(self) -> str: ...

    @property
    def monitor(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def headings(self) -> Mapping[str, str]: ...

    @property
    def counted(self) -> str: ...

    @property
    def collate(self) -> Collate: ...

    def create_model(
        self, settings: ModelSettings, classes: int, channels: int, pretrained: bool = False
    ) -> nn.Module: ...

    def check_model(
        self, model: nn.Module, name: str, input_size: tuple[int, int, int], classes: int | None = None
    ) -> None:
        """Raises ValueError when the network cannot take such images, or answers in another form than this task's."""
        ...

    def load_initial(self, model: nn.Module, file: Path | None, head: str) -> tuple[str, ...]:
        """Starts a training from the weights in a file, `head` as in `ModelSettings`; without one from random weights.
        Sentences about what is left at its initial values and a reader must not miss; ValueError when the file does
        not fit."""
        ...

    def preprocess(self, settings: DataSettings, model_name: str) -> Preparation:
        """How an image becomes the input of a network that starts to train. Raises ValueError for an unknown name."""
        ...

    def train_transform(self, settings: Settings, preprocess: Preparation) -> Transform:
        """Makes a sample of an image and its target, with what `settings.model` learns of it."""
        ...

    def load_splits(
        self,
        settings: DataSettings,
        preprocess: Preparation,
        train_transform: Transform | None = None,
        classes: tuple[str, ...] | None = None,
        split: str = "val",
    ) -> Splits:
        """Finds the images and their targets, as `vssm.data.splits.load_splits`."""
        ...

    def learner(self, model: nn.Module, settings: Settings, splits: Splits) -> Learner: ...

    def inference(self, model: nn.Module, data: DataSettings | None = None) -> Callable[[Any], Any]:
        """What gives the outputs for a batch of inputs in evaluation and prediction: the network itself, or a way of
        applying it (windows, scales) that `data` asks for."""
        ...

    def metrics(self, splits: Splits, details: int = 0) -> Metrics:
        """Of `splits.val`. `details` above 0 adds what costs memory per image, with at most so many examples: for an
        evaluation of its own, not for one within a training."""
        ...

    def results(self, outputs: Any, classes: Sequence[str], top_k: int) -> list[Any]:
        """The result for each image of a batch, from the outputs of `inference`; None for NaN or infinity."""
        ...

    def results_writer(self, classes: Sequence[str]) -> ResultsWriter | None:
        """What `vssm validate --results` writes of an evaluation; None where there is no such file."""
        ...

    def summary(self, result: Any, classes: Sequence[str]) -> str:
        """A result in a few words, for a line on the screen."""
        ...

    def plain(self, result: Any, classes: Sequence[str]) -> dict[str, Any]:
        """A result as what a line of JSON holds."""
        ...

    def examples(self, quality: Any, splits: Splits, classes: Sequence[str]) -> list[Example]:
        """Of an evaluation with `details`: images with what was found and what is true drawn on them, for a report;
        none where it shows mistakes otherwise."""
        ...

    def draw(self, image: Image.Image, result: Any, classes: Sequence[str]) -> Image.Image:
        """What was found (or is true) drawn on an image; the image itself where the result is text beside it."""
        ...
