"""Image classification: a timm model, cross entropy with label smoothing, top-1 and top-5 accuracy."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

import vssm.models  # noqa: F401 (registers our models with timm)
from vssm._words import nearest


def create_classifier(
    name: str,
    num_classes: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    drop_path: float | None = None,
    **arguments: Any,
) -> nn.Module:
    """Any timm model by name; `num_classes=None` keeps the model's own.

    Raises ValueError with the nearest names for a name that timm does not know, and for arguments that the model's
    builder does not take.
    """
    check_model_name(name)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if drop_path is not None:
        arguments["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **arguments)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        unknown = str(error).rpartition("argument ")[2]
        raise ValueError(f"model {name} takes no argument {unknown}") from error


def check_model_name(name: str) -> None:
    """Raises ValueError with the nearest known names when timm has no model of this name."""
    if timm.is_model(name) or ":" in name:  # hf-hub:OWNER/NAME and local-dir:PATH are timm's to resolve
        return
    near = nearest(name, timm.list_models())
    raise ValueError(f"no model is called {name!r}{near} (`vssm models` lists ours, timm.list_models() all)")


@torch.inference_mode()
def check_image_size(model: nn.Module, name: str, input_size: tuple[int, int, int]) -> None:
    """One forward of an empty image (C, H, W). Raises ValueError when the model cannot take this size."""
    was_training = model.training
    model.eval()
    try:
        model(torch.zeros(1, *input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, input_size))
        raise ValueError(f"{name} cannot take images of {size}: {error}") from error
    model.train(was_training)


def class_names(model: nn.Module) -> tuple[str, ...]:
    """ImageNet's names for a model with its 1000 classes, else numbers."""
    count: int = model.num_classes  # type: ignore[assignment]
    if count != 1000:
        return tuple(map(str, range(count)))
    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(count))


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Weights of classes with n_c images each: w_c = n / (k n_c) for n images in k classes, so that every class counts
    the same and the mean over all images is 1. A class without images gets 0."""
    numbers = torch.tensor(counts, dtype=torch.float64)
    present = numbers > 0
    return torch.where(present, numbers.sum() / (present.sum() * numbers.clamp(min=1)), 0.0).float()


class Classification(nn.Module):
    """The loss that a classifier is trained with, and the metrics it is judged by.

    With targets y (B, K) (one-hot for labels), class weights w and smoothing e, the loss is the mean over the batch of
    sum_c w_c y_c [(1 - e) (-log p_c) + e/K sum_k (-log p_k)]: each image counts by the weight of its class, also for
    what smoothing spreads over the others, and a blend of two images counts as the same blend of their losses.

    `judge` gathers over a whole validation pass; `results()` gives `val_loss`, `val_top1`, `val_top5` (for more than
    five classes) and `val_images`, and starts afresh. `monitor` is the one that decides which checkpoint is best.
    """

    monitor = "val_top1"
    class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ):
        from torchmetrics import MeanMetric, MetricCollection, SumMetric
        from torchmetrics.classification import MulticlassAccuracy

        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)
        ranks = [1, 5] if num_classes > 5 else [1]
        self.accuracy = MetricCollection(
            {f"val_top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in ranks}
        )
        self.mean_loss = MeanMetric()
        self.images = SumMetric()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (B, K); targets: labels (B,) or distributions (B, K)."""
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        classes = logits.shape[-1]
        weighted = (F.one_hot(targets, classes) if targets.dim() == 1 else targets) * self.class_weights
        spread = weighted.sum(-1, keepdim=True) / classes
        return F.cross_entropy(logits, torch.lerp(weighted, spread.expand_as(weighted), self.label_smoothing))

    def judge(self, images: Tensor, labels: Tensor) -> None:
        """Adds one validation batch: cross entropy without smoothing, in float32 at least."""
        logits = self.model(images)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        self.accuracy.update(logits, labels)
        self.mean_loss.update(F.cross_entropy(logits, labels, reduction="sum") / len(labels), len(labels))
        self.images.update(len(labels))

    def results(self) -> dict[str, Tensor]:
        results = {
            "val_loss": self.mean_loss.compute(),
            **self.accuracy.compute(),
            "val_images": self.images.compute(),
        }
        for metric in (self.mean_loss, self.accuracy, self.images):
            metric.reset()
        return results
