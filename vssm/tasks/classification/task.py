"""Classification as a task."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor, nn

from vssm.data.batches import Collate, collate
from vssm.data.preprocess import Preparation, Preprocess
from vssm.data.splits import Splits, Transform, load_splits
from vssm.settings import DataSettings, ModelSettings, Settings
from vssm.tasks.classification.learner import Classification, balanced_weights
from vssm.tasks.classification.mixing import Mixing
from vssm.tasks.classification.model import check_image_size, check_model_name, create_classifier
from vssm.tasks.classification.transforms import preprocess_for, train_transform
from vssm.tasks.task import Example
from vssm.weights import load_checkpoint

if TYPE_CHECKING:
    from vssm.tasks.classification.metrics import ClassificationMetrics

Classes = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ClassificationTask:
    """Images of one class each, in one folder per class or the bundled digits."""

    name: str = "classification"
    monitor: str = "val_top1"
    columns: tuple[str, ...] = ("val_loss", "val_top1", "val_top5")
    counted: str = "images"
    headings: Mapping[str, str] = field(
        default_factory=lambda: {"val_loss": "loss", "val_top1": "%top-1", "val_top5": "%top-5"}
    )
    collate: Collate = collate

    def create_model(self, settings: ModelSettings, classes: int, channels: int, pretrained: bool = False) -> nn.Module:
        return create_classifier(
            settings.name, classes, channels, pretrained=pretrained, drop_path=settings.drop_path, **settings.args
        )

    def check_model(
        self, model: nn.Module, name: str, input_size: tuple[int, int, int], classes: int | None = None
    ) -> None:
        check_image_size(model, name, input_size, classes)

    def load_initial(self, model: nn.Module, file: Path | None, head: str) -> tuple[str, ...]:
        if file is not None:
            load_checkpoint(model, file, head=head)
        return ()

    def preprocess(self, settings: DataSettings, model_name: str) -> Preprocess:
        check_model_name(model_name)
        return preprocess_for(settings, model_name)

    def train_transform(self, settings: Settings, preprocess: Preparation) -> Transform:
        assert isinstance(preprocess, Preprocess)
        return train_transform(settings.data, preprocess)

    def load_splits(
        self,
        settings: DataSettings,
        preprocess: Preparation,
        train_transform: Transform | None = None,
        classes: tuple[str, ...] | None = None,
        split: str = "val",
    ) -> Splits:
        assert isinstance(preprocess, Preprocess)
        return load_splits(settings, preprocess, train_transform, classes, split)

    def learner(self, model: nn.Module, settings: Settings, splits: Splits) -> Classification:
        data = settings.data
        balanced = data.class_weights == "balanced" and splits.train is not None
        return Classification(
            model,
            settings.optim.label_smoothing,
            balanced_weights(splits.class_counts()["train"]) if balanced else None,
            Mixing(data, len(splits.classes)) if data.mixup > 0 or data.cutmix > 0 else None,
        )

    def inference(self, model: nn.Module, data: DataSettings | None = None) -> Callable[[Any], Any]:
        return model

    def metrics(self, splits: Splits, details: int = 0) -> "ClassificationMetrics":
        from vssm.tasks.classification.metrics import ClassificationMetrics  # torchmetrics is an extra

        return ClassificationMetrics(len(splits.classes), details)

    def results(self, outputs: Tensor, classes: Sequence[str], top_k: int) -> list[Classes | None]:
        """Name and probability of the most probable classes of each image; None for NaN or infinity."""
        probabilities = outputs.float().softmax(-1)
        values, indices = probabilities.topk(min(top_k, probabilities.shape[-1]))
        labels: list[list[int]] = indices.tolist()
        shares: list[list[float]] = values.tolist()
        return [
            tuple((classes[label], share) for label, share in zip(*image, strict=True))
            if all(map(math.isfinite, image[1]))
            else None
            for image in zip(labels, shares, strict=True)
        ]

    def results_writer(self, classes: Sequence[str]) -> None:
        """`vssm predict` lists classes."""

    def summary(self, result: Classes, classes: Sequence[str]) -> str:
        return ", ".join(f"{name} {probability:.1%}" for name, probability in result)

    def plain(self, result: Classes, classes: Sequence[str]) -> dict[str, Any]:
        return {"classes": [{"name": name, "probability": probability} for name, probability in result]}

    def examples(self, quality: object, splits: Splits, classes: Sequence[str]) -> list[Example]:
        return []

    def draw(self, image: Image.Image, result: object, classes: Sequence[str]) -> Image.Image:
        return image
