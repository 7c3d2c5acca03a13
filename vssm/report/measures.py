"""How good a classifier is on labelled images: accuracy, precision, recall, confusion, calibration, worst mistakes."""

import heapq
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassPrecision,
    MulticlassRecall,
)

BINS = 15


@dataclass(frozen=True)
class Mistake:
    """Image number `index` of the split, read as `read` with probability `confidence`."""

    index: int
    truth: int
    read: int
    confidence: float


@dataclass(frozen=True)
class Bin:
    """One bin of the calibration curve: how sure the model was on average, and how often it was right."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Quality:
    """What `Measure` found. Shares are in 0..1; per-class values follow the order of the classes.

    precision, recall, f1: (K,), NaN where nothing was read as the class, or no image is of it.
    confusion: (K, K) counts, true class by class read. not_finite: images for which the model gave NaN or infinity;
    they count as wrong in top1 and top5 and are left out of everything else.
    """

    images: int
    not_finite: int
    loss: float
    top1: float
    top5: float | None
    precision: Tensor
    recall: Tensor
    f1: Tensor
    confusion: Tensor
    ece: float
    bins: tuple[Bin, ...]
    mistakes: tuple[Mistake, ...]

    @property
    def support(self) -> Tensor:
        return self.confusion.sum(1)

    def top1_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of top-1: what a split of this size can tell."""
        z, n, p = 1.96, self.images, self.top1
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, centre - half), min(1.0, centre + half)


class Measure:
    """Gathers batches of logits (B, K) with labels (B,); `result()` judges them all.

    `numbers` (B,) are the images' places in the split, by which mistakes are named; counted from 0 when not given.

    Memory grows by two numbers per image. At most `mistakes` wrong images are kept, the most confident ones.
    """

    def __init__(self, num_classes: int, mistakes: int = 24):
        self.num_classes, self.kept = num_classes, mistakes
        none = {"num_classes": num_classes, "average": "none"}
        self.metrics = MetricCollection(
            {
                "confusion": MulticlassConfusionMatrix(num_classes),
                "precision": MulticlassPrecision(**none),
                "recall": MulticlassRecall(**none),
                **{
                    f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro")
                    for k in ([1, 5] if num_classes > 5 else [1])
                },
            },
            compute_groups=False,
        )
        self.calibration = MulticlassCalibrationError(num_classes, n_bins=BINS, norm="l1")
        self.images = self.not_finite = 0
        self.loss = 0.0
        self.confidences: list[Tensor] = []
        self.hits: list[Tensor] = []
        self._worst: list[tuple[float, int, Mistake]] = []

    def update(self, logits: Tensor, labels: Tensor, numbers: Tensor | None = None) -> None:
        logits, labels = logits.detach().float().cpu(), labels.cpu()
        if numbers is None:
            numbers = torch.arange(self.images, self.images + len(labels))
        self.images += len(labels)
        finite = logits.isfinite().all(-1)
        self.not_finite += int((~finite).sum())
        logits, labels, numbers = logits[finite], labels[finite], numbers[finite]
        if not len(labels):
            return
        # torchmetrics puts a confidence of exactly 1 in a bin of its own; just below, it falls in the last one.
        probabilities = logits.softmax(-1).clamp(max=1 - 2**-24)
        self.calibration.update(probabilities, labels)
        # Ranks are those of the logits: the probabilities of a very sure model are equal, all 0, but for the first.
        self.metrics.update(logits, labels)
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        confidence, read = probabilities.amax(-1), logits.argmax(-1)
        hit = read == labels
        self.confidences.append(confidence)
        self.hits.append(hit)
        for i in (~hit).nonzero().flatten().tolist():
            mistake = Mistake(int(numbers[i]), int(labels[i]), int(read[i]), float(confidence[i]))
            keep = heapq.heappush if len(self._worst) < self.kept else heapq.heappushpop
            keep(self._worst, (mistake.confidence, -mistake.index, mistake))

    def result(self) -> Quality:
        """Raises ValueError when there was nothing to judge, or the model gave no finite number for any image."""
        if self.images == self.not_finite:
            what = "NaN or infinity for every one of them" if self.images else "nothing to judge"
            raise ValueError(f"{self.images} validation images: {what}")
        found = self.metrics.compute()
        confusion = found["confusion"]
        judged = self.images - self.not_finite
        support, read = confusion.sum(1), confusion.sum(0)
        nan = torch.tensor(float("nan"))
        share = judged / self.images
        return Quality(
            images=self.images,
            not_finite=self.not_finite,
            loss=self.loss / judged,
            top1=float(found["top1"]) * share,
            top5=float(found["top5"]) * share if "top5" in found else None,
            # torchmetrics says 0 where the ratio is 0/0; a class that cannot be judged is not a bad class.
            precision=found["precision"].where(read > 0, nan),
            recall=found["recall"].where(support > 0, nan),
            f1=(2 * confusion.diag() / (support + read)),
            confusion=confusion,
            ece=float(self.calibration.compute()),
            bins=_bins(torch.cat(self.confidences), torch.cat(self.hits)),
            mistakes=tuple(mistake for _, _, mistake in sorted(self._worst, reverse=True)),
        )


def _bins(confidences: Tensor, hits: Tensor) -> tuple[Bin, ...]:
    """The non-empty ones of BINS equal bins of confidence, lowest first."""
    edges = torch.linspace(0, 1, BINS + 1)
    bins = torch.bucketize(confidences, edges, right=True) - 1
    members = [(bins == number).nonzero().flatten() for number in range(BINS)]
    return tuple(
        Bin(float(confidences[m].mean()), float(hits[m].float().mean()), len(m)) for m in members if len(m) > 0
    )
