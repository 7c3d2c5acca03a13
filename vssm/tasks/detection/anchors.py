"""Anchors: the boxes that the region proposal network starts from."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

RATIOS = (0.5, 1.0, 2.0)
SCALE = 8
_CPU = torch.device("cpu")


class Anchors(AnchorGenerator):
    """mmdet's AnchorGenerator: anchors of `scale` strides and three ratios, height to width, at every cell.

    Unlike torchvision's, they are not rounded, and cells are the nominal stride apart, also where a map was rounded up.

    Args:
        strides: of the maps, in pixels of the image.
        scale: the side of a square anchor, in strides.
        ratios: height / width.
    """

    def __init__(self, strides: Sequence[int], scale: float = SCALE, ratios: Sequence[float] = RATIOS):
        self.strides = tuple(strides)
        super().__init__(tuple((scale * stride,) for stride in strides), (tuple(ratios),) * len(self.strides))

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = _CPU,
    ) -> Tensor:
        """(ratios * scales, 4) around the origin."""
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        half = torch.stack([sides / roots, sides * roots], dim=-1).reshape(-1, 2) / 2
        return torch.cat([-half, half], dim=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Maps (B, C, H, W) of every stride -> anchors (H * W * ratios, 4) of each, row by row, float32."""
        self.set_cell_anchors(torch.float32, maps[0].device)
        sizes = [list(level.shape[-2:]) for level in maps]
        return self.grid_anchors(sizes, [[stride, stride] for stride in self.strides])  # type: ignore[list-item]

    def usable(
        self, maps: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int], multiple: int, border: int
    ) -> Tensor:
        """Which anchors of an image of `size` (h, w) may be trained on: one bool for each, of all maps together.

        Cells beyond the image's own padding to `multiple`, which a larger image of the batch caused, are left out
        (mmdet's valid flags); with `border` of 0 or more, so are anchors that reach further beyond the image.
        """
        padded = [-(-side // multiple) * multiple for side in size]
        flags = []
        for level, boxes, stride in zip(maps, anchors, self.strides):
            rows, columns = (torch.arange(n, device=boxes.device) for n in level.shape[-2:])
            inside = (rows < math.ceil(padded[0] / stride))[:, None] & (columns < math.ceil(padded[1] / stride))
            flags.append(inside.flatten().repeat_interleave(len(boxes) // inside.numel()))
        usable = torch.cat(flags)
        if border >= 0:
            boxes = torch.cat(list(anchors))
            height, width = size
            usable &= (boxes[:, :2] >= -border).all(1)
            usable &= (boxes[:, 2] < width + border) & (boxes[:, 3] < height + border)
        return usable
