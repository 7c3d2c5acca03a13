"""Boxes as deltas to other boxes: (dx, dy, log dw, log dh), as in R-CNN (Girshick et al. 2014, arXiv 1311.2524)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

# mmdet's wh_ratio_clip: a side shrinks or grows at most to this share, in both directions; torchvision bounds growth.
MAX_LOG_RATIO = abs(math.log(16 / 1000))


@dataclass(frozen=True)
class BoxCoder:
    """mmdet's DeltaXYWHBBoxCoder with means of 0. Boxes are (x1, y1, x2, y2) in the last dim, of any leading shape.

    stds: what the deltas of x, y, width and height are divided by.
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """The deltas that turn `boxes` into `targets`, both of positive width and height."""
        centre, extent = _centre(boxes)
        target_centre, target_extent = _centre(targets)
        deltas = torch.cat([(target_centre - centre) / extent, (target_extent / extent).log()], dim=-1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, boxes: Tensor, deltas: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The boxes that deltas (..., 4) make of `boxes`; clipped to [0, w] and [0, h] of an image of `size` (h, w)."""
        deltas = deltas * deltas.new_tensor(self.stds)
        centre, extent = _centre(boxes)
        centre = centre + extent * deltas[..., :2]
        half = 0.5 * extent * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        decoded = torch.cat([centre - half, centre + half], dim=-1)
        return decoded if size is None else clip_boxes_to_image(decoded, size)


def _centre(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return 0.5 * (low + high), high - low
