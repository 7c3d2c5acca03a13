"""How good a segmentation is on labelled images: intersection over union and accuracy, from one confusion matrix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from vssm.data.batches import Batch
from vssm.data.loaders import size_of
from vssm.data.mask_classes import IGNORED
from vssm.data.splits import Splits
from vssm.tasks.segmentation.inference import LabelMap


@dataclass(frozen=True)
class Found:
    """What was found in image `index` of the split: labels (H, W), uint8."""

    index: int
    labels: Tensor


@dataclass(frozen=True)
class SegmentationQuality:
    """Shares are in 0..1, as mmseg has them: over the pixels of all images together, the ignored ones left out.

    confusion: (K, K + 1) pixels, true class by predicted class; the last column has those of the `not_finite` images,
        for which the network gave NaN or infinity: they count as wrong.
    examples: label maps of some images, spread evenly over the split.
    """

    images: int
    not_finite: int
    confusion: Tensor
    examples: tuple[Found, ...] = ()

    @property
    def pixels(self) -> Tensor:
        """(K,): of each class."""
        return self.confusion.sum(1)

    @property
    def iou(self) -> Tensor:
        """(K,): pixels that are of the class and were predicted as it, over those that are either. NaN for a class that
        is nowhere, true or predicted."""
        right = self.confusion.diagonal()
        return right.double() / (self.confusion.sum(1) + self.confusion[:, :-1].sum(0) - right)

    @property
    def accuracy(self) -> Tensor:
        """(K,): share of a class's pixels that were predicted as it. NaN for a class without pixels."""
        return self.confusion.diagonal().double() / self.confusion.sum(1)

    def logged(self) -> dict[str, float]:
        """val_miou and val_macc: means over the classes that are not NaN. val_aacc: share of all pixels."""
        total = int(self.confusion.sum())
        return {
            "val_miou": float(self.iou.nanmean()),
            "val_aacc": int(self.confusion.diagonal().sum()) / total if total else math.nan,
            "val_macc": float(self.accuracy.nanmean()),
            "val_images": float(self.images),
        }

    def by_class(self) -> dict[str, list[float]]:
        """%pixels: the share of all pixels that are of the class."""
        return {
            "%pixels": (self.pixels.double() / self.confusion.sum()).tolist(),
            "%accuracy": self.accuracy.tolist(),
            "%IoU": self.iou.tolist(),
        }

    def problem(self) -> str | None:
        if self.images == 0:
            return "nothing to evaluate"
        if self.images == self.not_finite:
            return "NaN or infinity for every one of them"
        return None if int(self.confusion.sum()) else "all pixels are ignored, so that nothing can be compared"


class Confusion(Metric):
    """Pixels (K, K + 1), true class by predicted class; K stands for a prediction that there is not."""

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes
        self.add_state("counts", torch.zeros(classes, classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def count(self, found: Tensor, truth: Tensor) -> Tensor:
        """Of labels of the same shape; pixels with the truth 255 are left out."""
        valid = truth != IGNORED
        columns = self.classes + 1
        index = truth[valid].long() * columns + found[valid].long()
        return torch.bincount(index, minlength=self.counts.numel()).view_as(self.counts)

    def update(self, counts: Tensor) -> None:
        self.counts += counts

    def compute(self) -> Tensor:
        return self.counts


class SegmentationMetrics(nn.Module):
    """Gathers label maps with their truth, from all processes; what is kept does not grow with the number of images.

    With `details`, the label maps of so many images, evenly spaced over the split, are kept as examples.

    rows: of each image of the latest batch, {finite, confusion: [[true, predicted, pixels], ...]}. An output may be
    such a row too.
    """

    def __init__(self, classes: int, images: int = 0, details: int = 0):
        super().__init__()
        self.confusion = Confusion(classes)
        self.images, self.not_finite = SumMetric(), SumMetric()
        step = max(1, images // details) if details else 1
        self.kept = set(range(0, images, step)[:details])
        self.examples: list[Found] = []
        self._latest: list[tuple[bool, Tensor]] = []

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for finite, counts in self._latest:
            counts = counts.cpu()
            places = counts.nonzero()
            pixels = counts[places[:, 0], places[:, 1], None]
            found.append({"finite": finite, "confusion": torch.cat([places, pixels], 1).tolist()})
        return found

    @classmethod
    def of(cls, splits: Splits, details: int = 0) -> "SegmentationMetrics":
        return cls(len(splits.classes), size_of(splits.val), details)

    def update(self, outputs: Sequence[LabelMap | dict[str, Any]], batch: Batch) -> None:
        """Images whose labels have another size than the output raise ValueError."""
        indices: list[int] = batch.indices.tolist() if len(batch.indices) else [-1] * len(outputs)
        targets: Sequence[Tensor] = batch.targets
        self._latest = []
        for found, truth, index in zip(outputs, targets, indices, strict=True):
            finite, counts = self._counted(found, truth) if isinstance(found, LabelMap) else self._stored(found)
            self._latest.append((finite, counts))
            self.confusion.update(counts)
            self.images.update(1)
            self.not_finite.update(0 if finite else 1)
            if index in self.kept and finite and isinstance(found, LabelMap):
                self.examples.append(Found(index, found.labels.cpu()))

    def _counted(self, found: LabelMap, truth: Tensor) -> tuple[bool, Tensor]:
        if found.labels.shape != truth.shape:
            raise ValueError(
                f"labels of {list(truth.shape)} for an image that was labelled as {list(found.labels.shape)}"
            )
        none = torch.full_like(found.labels, self.confusion.classes)
        return found.finite, self.confusion.count(found.labels if found.finite else none, truth)

    def _stored(self, row: dict[str, Any]) -> tuple[bool, Tensor]:
        counts = torch.zeros_like(self.confusion.counts)
        if row["confusion"]:
            true, found, pixels = torch.tensor(row["confusion"], device=counts.device).unbind(1)
            counts[true, found] = pixels
        return row["finite"], counts

    def compute(self) -> SegmentationQuality:
        counts: Any = self.confusion.compute()
        examples = tuple(sorted(self.examples, key=lambda one: one.index))
        return SegmentationQuality(int(self.images.compute()), int(self.not_finite.compute()), counts.cpu(), examples)

    def reset(self) -> None:
        for metric in (self.confusion, self.images, self.not_finite):
            metric.reset()
        self.examples = []
