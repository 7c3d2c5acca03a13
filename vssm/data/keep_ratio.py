"""How an image becomes the input of a detector or a segmentation network: resized as a whole, its aspect ratio kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF  # pyright: ignore[reportMissingTypeStubs]

from vssm.data.image import open_image
from vssm.data.padded import PaddedImages
from vssm.data.preprocess import plain_fields, tuple_fields

__all__ = ["KeepRatio", "KeepRatioTransform", "resize_pixels", "size_within"]

# ImageNet's, in 0..1: 123.675, 116.28, 103.53 and 58.395, 57.12, 57.375 of 255.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def size_within(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width of the largest image of this aspect ratio whose shorter side is at most `short_side` and whose
    longer side is at most `long_side`, rounded half up, as mmcv's `imrescale` does."""
    height, width = size
    factor = min(long_side / max(size), short_side / min(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_pixels(pixels: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """(H, W, C) uint8 -> (h, w, C) uint8. Without a filter against aliasing, as OpenCV resizes for mmdet and mmseg."""
    if tuple(pixels.shape[:2]) == size:
        return pixels
    moved = pixels.movedim(-1, 0).contiguous()
    resized: Tensor = TF.resize(moved, list(size), interpolation=TF.InterpolationMode(mode), antialias=False)
    return resized.movedim(0, -1)


class KeepRatioTransform:
    """PIL image -> 8-bit pixels -> normalised tensor; the two halves as those of `ImageTransform`."""

    min_side = None  # an image is decoded in full: its size is part of the result

    def __init__(self, preprocess: "KeepRatio"):
        self.preprocess = preprocess
        self.mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
        self.std = torch.tensor(preprocess.std).view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image (RGB or L) -> (C, h, w), float32."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """PIL image (RGB or L) -> (h, w, C), uint8."""
        values = np.array(image)
        pixels = torch.as_tensor(values if values.ndim == 3 else values[..., None])
        chosen = self.preprocess
        return resize_pixels(pixels, size_within((image.height, image.width), chosen.short_side, chosen.long_side))

    def normalise(self, pixels: Tensor) -> Tensor:
        """(..., h, w, C) in 0..255 -> (..., C, h, w), float32."""
        images = pixels.movedim(-1, -3).contiguous().float()
        return images.div_(255).sub_(self.mean.to(images.device)).div_(self.std.to(images.device))


@dataclass(frozen=True)
class KeepRatio:
    """Resize with the aspect ratio kept, scale to 0..1, normalise per channel, pad at the right and the bottom.

    short_side, long_side: see `size_within`. mean, std: one per channel, of values in 0..1. multiple: the sides of a
    batch are padded to a multiple of it.
    """

    short_side: int
    long_side: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    multiple: int = 32

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the largest image in landscape format: what is counted and announced."""
        return self.channels, self.short_side, self.long_side

    def transform(self) -> KeepRatioTransform:
        return KeepRatioTransform(self)

    def batch(
        self, pixels: Sequence[Tensor], originals: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> PaddedImages:
        """Images (h, w, C) as `transform().pixels` makes them, and (H, W) of their files -> the input of a network."""
        normalise = self.transform().normalise
        images = [normalise(one.to(device)) for one in pixels]
        return PaddedImages.of(images, tuple(originals), self.multiple)

    def __call__(self, path: str | Path) -> Tensor:
        """Reads one file. Raises UnreadableImage, a ValueError, when it is not a readable image."""
        return self.transform()(open_image(path, self.channels))

    def as_dict(self) -> dict[str, Any]:
        return plain_fields(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "KeepRatio":
        return cls(**tuple_fields(plain))
