"""Masks between the image and the 28 x 28 cells of a box: targets of a training, and pasting of what was found."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

THRESHOLD = 0.5


def mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor, padded: tuple[int, int], cells: int = 28) -> Tensor:
    """The masks of objects in the cells of boxes: mmdet's BitmapMasks.crop_and_resize.

    RoIAlign (aligned, as many samples per cell as it has pixels) of the mask as float, binarised at 0.5.

    Args:
        masks: (G, h, w) bool, of the objects of an image.
        boxes: (N, 4), in pixels of the masks.
        objects: (N,) int64, whose mask each box gets.
        padded: (H, W) of the batch: the masks end with zeros there, as the image does.

    Returns:
        (N, cells, cells) float, 0 or 1.
    """
    targets = boxes.new_zeros(len(boxes), cells, cells)
    height, width = padded
    around = (0, width - masks.shape[-1], 0, height - masks.shape[-2])
    for index in objects.unique().tolist():  # one at a time: floats take four times the memory of all masks
        at = torch.where(objects == index)[0]
        mask = F.pad(masks[index].to(boxes.dtype), around)[None, None]
        cropped = roi_align(mask, [boxes[at]], cells, spatial_scale=1.0, sampling_ratio=0, aligned=True)
        targets[at] = (cropped[:, 0] >= THRESHOLD).to(boxes.dtype)
    return targets


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = THRESHOLD) -> Iterator[Tensor]:
    """Masks in their boxes -> masks of the image, one after the other: mmdet's pasting.

    The image is sampled at the centres of its pixels, bilinear, with zeros beyond the box. Only the pixels around the
    box are computed.

    Args:
        masks: (N, m, m) probabilities.
        boxes: (N, 4), in pixels of the image.
        size: (H, W) of the image.
        threshold: the least probability of a pixel of the mask.

    Yields:
        (H, W) bool, N times.
    """
    height, width = size
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist()):
        whole = torch.zeros(size, dtype=torch.bool, device=masks.device)
        left, top = max(int(x1 // 1) - 1, 0), max(int(y1 // 1) - 1, 0)
        right, bottom = min(-int(-x2 // 1) + 1, width), min(-int(-y2 // 1) + 1, height)
        if left < right and top < bottom:
            columns = _within(left, right, x1, x2, masks)
            rows = _within(top, bottom, y1, y2, masks)
            grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[None]
            sampled = F.grid_sample(mask[None, None].float(), grid, align_corners=False)
            whole[top:bottom, left:right] = sampled[0, 0] >= threshold
        yield whole


def _within(first: int, end: int, low: float, high: float, like: Tensor) -> Tensor:
    """Where the centres of pixels first..end-1 are between `low` (-1) and `high` (1); 0 in a box without extent."""
    centres = torch.arange(first, end, dtype=torch.float32, device=like.device) + 0.5
    if high == low:
        return torch.zeros_like(centres)
    return (centres - low) / (high - low) * 2 - 1
