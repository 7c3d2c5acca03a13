"""What was found in an image."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vssm.tasks.detection.masks import THRESHOLD, paste


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, highest score first.

    boxes: (N, 4) x1, y1, x2, y2, float, in pixels of the original image.
    scores: (N,) in 0..1. labels: (N,) int64.
    size: (H, W) of the original image.
    masks: (N, m, m) probabilities in the cells of each box; None from a network for boxes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.labels.shape != (count,):
            raise ValueError(
                f"boxes (N, 4), scores (N,) and labels (N,) do not fit: {list(self.boxes.shape)}, "
                f"{list(self.scores.shape)}, {list(self.labels.shape)}"
            )
        if self.masks is not None and (self.masks.dim() != 3 or len(self.masks) != count):
            raise ValueError(f"masks must be ({count}, m, m), got {list(self.masks.shape)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: Any) -> "Detections":
        """Those that a slice, a list of indices or a bool tensor chooses."""
        if isinstance(chosen, int):
            chosen = [chosen]
        masks = None if self.masks is None else self.masks[chosen]
        return replace(
            self, boxes=self.boxes[chosen], scores=self.scores[chosen], labels=self.labels[chosen], masks=masks
        )

    def to(self, device: torch.device | str) -> "Detections":
        """The same on another device."""
        masks = None if self.masks is None else self.masks.to(device)
        boxes, scores, labels = (tensor.to(device) for tensor in (self.boxes, self.scores, self.labels))
        return replace(self, boxes=boxes, scores=scores, labels=labels, masks=masks)

    def pasted(self, threshold: float = THRESHOLD) -> Iterator[Tensor]:
        """The masks in the image, (H, W) bool, one after the other: never all of them in memory.

        Raises ValueError where there are no masks.
        """
        if self.masks is None:
            raise ValueError("these detections have no masks: the network was built with masks=False")
        return paste(self.masks, self.boxes, self.size, threshold)

    def paste(self, chosen: Any = slice(None), threshold: float = THRESHOLD) -> Tensor:
        """The masks of the chosen objects in the image: (n, H, W) bool, all in memory at once. Errors as `pasted`."""
        masks = list(self[chosen].pasted(threshold))
        return torch.stack(masks) if masks else torch.zeros(0, *self.size, dtype=torch.bool, device=self.boxes.device)

    def rle(self, threshold: float = THRESHOLD) -> list[dict[str, Any]]:
        """COCO's run lengths of each mask, as `vssm.data.rle.encode` makes them. Errors as `pasted`."""
        from vssm.data.rle import encode  # needs a package that finding boxes does not

        return [dict(encode(mask.cpu().numpy())) for mask in self.pasted(threshold)]
