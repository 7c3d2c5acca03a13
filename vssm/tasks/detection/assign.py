"""Which object a box is trained to find, and which boxes are trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

# A private module: the sampler has no public home, and has been the same since it was written.
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import box_iou

BACKGROUND, IGNORED = -1, -2


@dataclass(frozen=True)
class Assigner:
    """mmdet's MaxIoUAssigner.

    positive: a box with at least this IoU with an object finds the object with which it has the largest.
    negative: a box with less than this IoU with every object is background; what lies between is not trained on.
    low_quality: each object also takes the boxes with which it has its largest IoU, if that is at least `minimum`, and
        also from another object. torchvision's Matcher has no minimum and gives such a box to the object with which the
        box has its largest.
    minimum: see `low_quality`.
    """

    positive: float
    negative: float
    low_quality: bool
    minimum: float

    def __call__(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """Boxes (N, 4), objects (G, 4) -> index of the object of each box (N,) int64, BACKGROUND or IGNORED."""
        if not len(objects) or not len(boxes):
            return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
        iou = box_iou(objects, boxes)
        largest, found = iou.max(dim=0)
        found[largest < self.positive] = IGNORED
        found[largest < self.negative] = BACKGROUND
        if self.low_quality:
            best = iou.max(dim=1, keepdim=True).values
            rows, columns = ((iou == best) & (best >= self.minimum)).nonzero(as_tuple=True)
            taken = torch.full_like(found, BACKGROUND).scatter_reduce(0, columns, rows, "amax")  # the last one has it
            found = torch.where(taken >= 0, taken, found)
        return found


@dataclass(frozen=True)
class Sampler:
    """mmdet's RandomSampler: `count` boxes at random, at most the share `positive` of which have an object."""

    count: int
    positive: float

    def __call__(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """What `Assigner` found (N,) -> indices of boxes with an object, and of background; torch's random numbers."""
        draw = BalancedPositiveNegativeSampler(self.count, self.positive)
        positive, negative = draw([found - BACKGROUND])  # 0 is its background, below it does not look
        return torch.where(positive[0])[0], torch.where(negative[0])[0]
