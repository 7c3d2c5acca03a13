"""What a task is: everything that a training, an evaluation, a prediction or a report asks for that depends on it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

from vssm.data.batches import Batch, Collate
from vssm.data.preprocess import Preprocess
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


class Metrics(Protocol):
    """Gathers the answers to all batches of an evaluation, on the device where they are; an `nn.Module`."""

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
    def collate(self) -> Collate: ...

    def create_model(
        self, settings: ModelSettings, classes: int, channels: int, pretrained: bool = False
    ) -> nn.Module: ...

    def check_model(
        self, model: nn.Module, name: str, input_size: tuple[int, int, int], classes: int | None = None
    ) -> None:
        """Raises ValueError when the network cannot take such images, or answers in another form than this task's."""
        ...

    def preprocess(self, settings: DataSettings, model_name: str) -> Preprocess:
        """How an image becomes the input of a network that starts to train. Raises ValueError for an unknown name."""
        ...

    def train_transform(self, settings: DataSettings, preprocess: Preprocess) -> Transform: ...

    def load_splits(
        self,
        settings: DataSettings,
        preprocess: Preprocess,
        train_transform: Transform | None = None,
        classes: tuple[str, ...] | None = None,
        split: str = "val",
    ) -> Splits:
        """Finds the images and their targets, as `vssm.data.splits.load_splits`."""
        ...

    def learner(self, model: nn.Module, settings: Settings, splits: Splits) -> Learner: ...

    def metrics(self, classes: int, details: int = 0) -> Metrics:
        """`details` above 0 adds what costs memory per image, with at most so many examples: for an evaluation of
        its own, not for one within a training."""
        ...

    def results(self, outputs: Any, classes: Sequence[str], top_k: int) -> list[Any]:
        """The result for each image of a batch, from the network's outputs."""
        ...

    def draw(self, image: Image.Image, result: Any) -> Image.Image:
        """What was found (or is true) drawn on an image; the image itself where the result is text beside it."""
        ...
