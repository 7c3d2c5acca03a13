"""From proposals to objects: stages of a box head and a mask head. Mask R-CNN has one stage, its cascade three."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, generalized_box_iou_loss

from vssm.data.padded import PaddedImages
from vssm.tasks.detection import box_head, mask_head
from vssm.tasks.detection.assign import Assigner, Sampler
from vssm.tasks.detection.coder import BoxCoder
from vssm.tasks.detection.detections import Detections
from vssm.tasks.detection.masks import mask_targets
from vssm.tasks.detection.roi import RoIFeatures
from vssm.tasks.detection.targets import Target


@dataclass(frozen=True)
class StageConfig:
    """iou: from which a box finds an object; below, it is background.
    low_quality: see `Assigner`; with the minimum `iou`, it decides between objects that overlap.
    sampler: which boxes are trained on, the objects' own among them.
    stds: of the deltas.
    box_loss: "l1" of the deltas, or "giou" of the boxes. box_weight: its weight.
    weight: of all losses of the stage.
    """

    iou: float = 0.5
    low_quality: bool = True
    sampler: Sampler = field(default=Sampler(512, 0.25))
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    box_loss: str = "l1"
    box_weight: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True)
class Samples:
    """The boxes of an image that a stage is trained on.

    boxes: (S, 4), those with an object first. objects: (P,) indices of these objects. own: (S,) bool, which boxes are
    an object's own and no proposals.
    """

    boxes: Tensor
    objects: Tensor
    own: Tensor


class Stage(nn.Module):
    """A box head and, or not, a mask head, with how they are trained."""

    def __init__(self, config: StageConfig, box: box_head.BoxHead, mask: mask_head.MaskHead | None):
        super().__init__()
        if config.box_loss not in ("l1", "giou"):
            raise ValueError(f"unknown box_loss {config.box_loss!r}: choose one of l1, giou")
        self.config = config
        self.box, self.mask = box, mask
        self.coder = BoxCoder(config.stds)
        self.assigner = Assigner(config.iou, config.iou, config.low_quality, minimum=config.iou)

    def sample(self, proposals: Tensor, target: Target) -> Samples:
        """Proposals find objects; then the objects' own boxes come first among those that are drawn from."""
        own = target["boxes"]
        found = torch.cat([torch.arange(len(own), device=own.device), self.assigner(proposals, own)])
        boxes = torch.cat([own, proposals])
        positive, negative = self.config.sampler(found)
        chosen = torch.cat([positive, negative])
        return Samples(boxes[chosen], found[positive], chosen < len(own))

    def box_losses(
        self, scores: Tensor, deltas: Tensor, boxes: Tensor, labels: Tensor, aims: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy of all S samples, and the loss of the P boxes with an object; both over S.

        Args:
            scores: (S, K + 1). deltas: (S, K, 4). boxes: (S, 4).
            labels: (S,), K for background.
            aims: (P, 4) boxes of the objects, in the order of the samples.
        """
        count = max(len(labels), 1)
        at = torch.where(labels < deltas.shape[1])[0]
        chosen = deltas[at, labels[at]]
        if self.config.box_loss == "l1":
            loss = F.l1_loss(chosen, self.coder.encode(boxes[at], aims), reduction="sum")
        else:
            loss = generalized_box_iou_loss(self.coder.decode(boxes[at], chosen), aims, reduction="sum")
        return F.cross_entropy(scores, labels, reduction="sum") / count, self.config.box_weight * loss / count


class RoIHeads(nn.Module):
    """Stages, each on the boxes of the one before.

    Args:
        stages: see `Stage`.
        strides: of the levels that regions are taken from.
        score: objects of a lower score are not reported. nms: IoU of NMS among objects of a class. kept: per image.
    """

    def __init__(
        self, stages: Sequence[Stage], strides: Sequence[int], score: float = 0.05, nms: float = 0.5, kept: int = 100
    ):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.box_features = RoIFeatures(strides, box_head.CELLS)
        self.mask_features = RoIFeatures(strides, mask_head.CELLS)
        self.score, self.nms, self.kept = score, nms, kept

    # ---- training ----

    def losses(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], images: PaddedImages, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """ "cls", "box" and "mask", or with more stages "cls_1", ..., weighted."""
        losses: dict[str, Tensor] = {}
        for index, stage in enumerate(self._stages(), start=1):
            samples = [stage.sample(boxes, target) for boxes, target in zip(proposals, targets)]
            found, proposals = self._box_losses(stage, maps, samples, images, targets)
            if stage.mask is not None:
                found["mask"] = self._mask_loss(stage.mask, maps, samples, images, targets)
            suffix = f"_{index}" if len(self.stages) > 1 else ""
            losses |= {f"{name}{suffix}": stage.config.weight * loss for name, loss in found.items()}
        return losses

    def _box_losses(
        self,
        stage: Stage,
        maps: Sequence[Tensor],
        samples: Sequence[Samples],
        images: PaddedImages,
        targets: Sequence[Target],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The losses, and the boxes of the samples as the stage betters them, without the objects' own."""
        scores, deltas = stage.box(self.box_features(maps, [sample.boxes for sample in samples]))
        background = deltas.shape[1]
        labels, aims = [], []
        for sample, target in zip(samples, targets):
            none = sample.objects.new_full((len(sample.boxes) - len(sample.objects),), background)
            labels.append(torch.cat([target["labels"][sample.objects], none]))
            aims.append(target["boxes"][sample.objects])
        boxes, label = torch.cat([sample.boxes for sample in samples]), torch.cat(labels)
        cls, box = stage.box_losses(scores, deltas, boxes, label, torch.cat(aims))
        with torch.no_grad():
            label = torch.where(label == background, scores[:, :-1].argmax(dim=1), label)
            counts = [len(sample.boxes) for sample in samples]
            better = self._regress(stage, boxes, deltas, label, counts, images)
            better = [boxes[~sample.own] for boxes, sample in zip(better, samples)]
        return {"cls": cls, "box": box}, better

    def _mask_loss(
        self,
        head: mask_head.MaskHead,
        maps: Sequence[Tensor],
        samples: Sequence[Samples],
        images: PaddedImages,
        targets: Sequence[Target],
    ) -> Tensor:
        """Binary cross entropy of the masks of the right classes: the mean over the cells of boxes with an object."""
        boxes = [sample.boxes[: len(sample.objects)] for sample in samples]
        logits = head(self.mask_features(maps, boxes))
        height, width = images.pixels.shape[-2:]
        labels = torch.cat([target["labels"][sample.objects] for sample, target in zip(samples, targets)])
        wanted = [
            mask_targets(target["masks"], box, sample.objects, (height, width), logits.shape[-1])
            for box, sample, target in zip(boxes, samples, targets)
        ]
        if not len(labels):
            return logits.sum() * 0
        chosen = logits[torch.arange(len(labels), device=labels.device), labels]
        return F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted))

    # ---- evaluation ----

    def detect(self, maps: Sequence[Tensor], proposals: Sequence[Tensor], images: PaddedImages) -> list[Detections]:
        """Scores and masks are averages over the stages (of the scores before the softmax), boxes the last stage's."""
        found = self.find(maps, proposals, images)
        masks = self._masks(maps, [boxes for boxes, _, _ in found], [labels for _, _, labels in found])
        return [
            _in_original(*parts, mask, size, original)
            for parts, mask, size, original in zip(found, masks, images.sizes, images.originals)
        ]

    def find(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], images: PaddedImages
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes in pixels of the resized image, scores and labels of each image's objects."""
        counts = [len(boxes) for boxes in proposals]
        boxes, total = torch.cat(list(proposals)), torch.zeros((), device=maps[0].device)
        stages = self._stages()
        for stage in stages:
            scores, deltas = stage.box(self.box_features(maps, boxes.split(counts)))
            total = total + scores
            if stage is not stages[-1]:
                better = self._regress(stage, boxes, deltas, scores[:, :-1].argmax(dim=1), counts, images)
                boxes = torch.cat(better)
        scores = (total / len(stages)).softmax(dim=1)[:, :-1]
        return [
            self._select(stages[-1].coder.decode(b[:, None], d, size), s)
            for b, d, s, size in zip(boxes.split(counts), deltas.split(counts), scores.split(counts), images.sizes)
        ]

    def _select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (n, K, 4) and scores (n, K) of an image -> those of the objects that remain, scores, labels."""
        at, labels = torch.where(scores > self.score)
        boxes, scores = boxes[at, labels], scores[at, labels]
        keep = batched_nms(boxes, scores, labels, self.nms)[: self.kept]
        return boxes[keep], scores[keep], labels[keep]

    def _masks(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """Probabilities (n, 28, 28) of the masks of each image's objects; None without mask heads."""
        heads = [stage.mask for stage in self._stages() if stage.mask is not None]
        if not heads:
            return [None] * len(boxes)
        features = self.mask_features(maps, boxes)
        label = torch.cat(list(labels))
        at = torch.arange(len(label), device=label.device)
        mean = torch.stack([head(features)[at, label].sigmoid() for head in heads]).mean(dim=0)
        return mean.split([len(box) for box in boxes])

    # ---- both ----

    def _regress(
        self,
        stage: Stage,
        boxes: Tensor,
        deltas: Tensor,
        labels: Tensor,
        counts: Sequence[int],
        images: PaddedImages,
    ) -> list[Tensor]:
        """Boxes (S, 4) of all images, bettered by the deltas of one class each, clipped to their image."""
        chosen = deltas[torch.arange(len(labels), device=labels.device), labels]
        parts = zip(boxes.split(list(counts)), chosen.split(list(counts)), images.sizes)
        return [stage.coder.decode(box, delta, size) for box, delta, size in parts]

    def _stages(self) -> list[Stage]:
        return list(self.stages)  # type: ignore[arg-type]

    def forward_counted(self, x: Tensor, proposals: int, masks: int) -> None:
        """All layers once, on as many regions as are given: x only gives the kind of tensor, (.., channels, .., ..)."""
        for stage in self._stages():
            stage.box(x.new_empty(proposals, x.shape[1], box_head.CELLS, box_head.CELLS))
            if stage.mask is not None:
                stage.mask(x.new_empty(masks, x.shape[1], mask_head.CELLS, mask_head.CELLS))


def _in_original(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    masks: Tensor | None,
    size: tuple[int, int],
    original: tuple[int, int],
) -> Detections:
    scale = [original[1] / size[1], original[0] / size[0]]
    return Detections(boxes * boxes.new_tensor(scale * 2), scores, labels, original, masks)
