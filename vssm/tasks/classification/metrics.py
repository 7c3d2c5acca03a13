"""How good a classifier is on labelled images: accuracy, precision, recall, confusion, calibration, worst mistakes."""

import heapq
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassPrecision,
    MulticlassRecall,
)

from vssm.data.batches import Batch
from vssm.ops.tensors import at_least_float32

BINS = 15


@dataclass(frozen=True)
class Answer:
    """Image `index` of the split, predicted as `read` with probability `confidence`."""

    index: int
    truth: int
    read: int
    confidence: float


@dataclass(frozen=True)
class Bin:
    """One bin of the calibration curve: the mean confidence, and how often the model was right."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Score:
    """Shares are in 0..1. not_finite: images for which the model gave NaN or infinity; they count as wrong in top1 and
    top5 and are left out of the loss (NaN when nothing else is left)."""

    images: int
    not_finite: int
    loss: float
    top1: float
    top5: float | None

    def logged(self) -> dict[str, float]:
        """The loss is NaN as soon as one image's is: a training that diverges must show it."""
        found = {"val_loss": math.nan if self.not_finite else self.loss, "val_top1": self.top1}
        if self.top5 is not None:
            found["val_top5"] = self.top5
        return found | {"val_images": float(self.images)}

    def by_class(self) -> dict[str, list[float]]:
        return {}

    def problem(self) -> str | None:
        if self.images == 0:
            return "nothing to evaluate"
        return "NaN or infinity for every one of them" if self.images == self.not_finite else None


@dataclass(frozen=True)
class Details(Score):
    """Per-class values follow the order of the classes.

    precision, recall, f1: (K,), NaN where nothing was predicted as the class, or no image is of it.
    confusion: (K, K) counts, true class by predicted class. mistakes: the most confident first; unsure: correct ones,
    the least confident first. Images counted by `not_finite` are left out of everything here.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor
    confusion: Tensor
    ece: float
    bins: tuple[Bin, ...]
    mistakes: tuple[Answer, ...]
    unsure: tuple[Answer, ...]

    @property
    def support(self) -> Tensor:
        return self.confusion.sum(1)

    def top1_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of top-1: the uncertainty from the size of the split."""
        z, n, p = 1.96, self.images, self.top1
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, centre - half), min(1.0, centre + half)


class ClassificationMetrics(nn.Module):
    """Gathers batches of logits (B, K) with labels (B,), from all processes; `compute()` evaluates them all.

    `details` above 0 adds what `Details` has, in one process: memory grows by two values per image, and at most
    `details` mistakes are kept, and as many correct images, named by `Batch.indices` (counted from 0 where a batch has
    none).
    """

    def __init__(self, num_classes: int, details: int = 0):
        super().__init__()
        ranks = [1, 5] if num_classes > 5 else [1]
        self.accuracy = MetricCollection(
            {f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in ranks}
        )
        self.loss, self.images, self.not_finite = MeanMetric(), SumMetric(), SumMetric()
        self.details = _Details(num_classes, details) if details else None
        self.seen = 0

    def update(self, outputs: Tensor, batch: Batch) -> None:
        logits, labels = outputs.detach(), batch.targets
        indices = batch.indices if len(batch.indices) else torch.arange(self.seen, self.seen + len(labels))
        self.seen += len(labels)
        logits = logits.to(at_least_float32(logits))
        finite = logits.isfinite().all(-1)
        self.images.update(len(labels))
        self.not_finite.update((~finite).sum())
        logits, labels = logits[finite], labels[finite]
        if len(labels) == 0:
            return
        # Ranks are those of the logits: the probabilities of a very confident model are equal, all 0, but for the
        # first.
        self.accuracy.update(logits, labels)
        self.loss.update(F.cross_entropy(logits, labels, reduction="sum") / len(labels), len(labels))
        if self.details is not None:
            self.details.update(logits, labels, indices.to(finite.device)[finite])

    def compute(self) -> Score:
        images, not_finite = int(self.images.compute()), int(self.not_finite.compute())
        finite = images - not_finite
        share = finite / images if images else 0.0
        found = self.accuracy.compute() if finite else {name: torch.zeros(()) for name in self.accuracy}
        score = Score(
            images,
            not_finite,
            float(self.loss.compute()) if finite else math.nan,
            float(found["top1"]) * share,
            float(found["top5"]) * share if "top5" in found else None,
        )
        if self.details is None or not finite:
            return score
        return Details(**vars(score), **self.details.compute())

    def reset(self) -> None:
        for metric in (self.accuracy, self.loss, self.images, self.not_finite):
            metric.reset()
        self.seen = 0
        if self.details is not None:
            self.details.reset()


class _Details(nn.Module):
    def __init__(self, num_classes: int, kept: int):
        super().__init__()
        self.kept = kept
        none: dict[str, Any] = {"num_classes": num_classes, "average": "none"}
        self.classes = MetricCollection(
            {
                "confusion": MulticlassConfusionMatrix(num_classes),
                "precision": MulticlassPrecision(**none),
                "recall": MulticlassRecall(**none),
            },
            compute_groups=False,
        )
        self.calibration = MulticlassCalibrationError(num_classes, n_bins=BINS, norm="l1")
        self.reset()

    def reset(self) -> None:
        self.classes.reset()
        self.calibration.reset()
        self.confidences: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.mistakes, self.unsure = _Most(self.kept), _Most(self.kept)

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        # torchmetrics puts a confidence of exactly 1 in a bin of its own; just below, it falls in the last one.
        probabilities = logits.softmax(-1).clamp(max=1 - 2**-24)
        self.calibration.update(probabilities, labels)
        self.classes.update(logits, labels)
        confidence, predicted = probabilities.amax(-1).cpu(), logits.argmax(-1).cpu()
        labels, indices = labels.cpu(), indices.cpu()
        hit = predicted == labels
        self.confidences.append(confidence)
        self.hits.append(hit)
        for i in (~hit).nonzero().flatten().tolist():
            self.mistakes.add(float(confidence[i]), _answer(i, indices, labels, predicted, confidence))
        right = hit.nonzero().flatten()
        for i in right[confidence[right].argsort(stable=True)[: self.kept]].tolist():
            self.unsure.add(-float(confidence[i]), _answer(i, indices, labels, predicted, confidence))

    def compute(self) -> dict[str, Any]:
        found = {name: value.cpu() for name, value in self.classes.compute().items()}
        confusion = found["confusion"]
        support, predicted = confusion.sum(1), confusion.sum(0)
        nan = torch.tensor(float("nan"))
        return {
            # torchmetrics answers 0 where the ratio is 0/0; a class that cannot be evaluated is not a bad class.
            "precision": found["precision"].where(predicted > 0, nan),
            "recall": found["recall"].where(support > 0, nan),
            "f1": 2 * confusion.diag() / (support + predicted),
            "confusion": confusion,
            "ece": float(self.calibration.compute()),
            "bins": _bins(torch.cat(self.confidences), torch.cat(self.hits)),
            "mistakes": self.mistakes.sorted(),
            "unsure": self.unsure.sorted(),
        }


class _Most:
    """The `kept` answers of the highest interest, the earlier image first among equals."""

    def __init__(self, kept: int):
        self.kept = kept
        self.heap: list[tuple[float, int, Answer]] = []

    def add(self, interest: float, answer: Answer) -> None:
        keep = heapq.heappush if len(self.heap) < self.kept else heapq.heappushpop
        keep(self.heap, (interest, -answer.index, answer))

    def sorted(self) -> tuple[Answer, ...]:
        return tuple(answer for _, _, answer in sorted(self.heap, key=lambda entry: entry[:2], reverse=True))


def _answer(i: int, indices: Tensor, labels: Tensor, predicted: Tensor, confidence: Tensor) -> Answer:
    return Answer(int(indices[i]), int(labels[i]), int(predicted[i]), float(confidence[i]))


def _bins(confidences: Tensor, hits: Tensor) -> tuple[Bin, ...]:
    """The non-empty ones of BINS equal bins of confidence, lowest first."""
    edges = torch.linspace(0, 1, BINS + 1)
    bins = torch.bucketize(confidences, edges, right=True) - 1
    members = [(bins == number).nonzero().flatten() for number in range(BINS)]
    return tuple(
        Bin(float(confidences[m].mean()), float(hits[m].float().mean()), len(m)) for m in members if len(m) > 0
    )
