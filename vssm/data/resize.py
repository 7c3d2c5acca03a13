"""Cropping and resizing Pillow images, with torch's resampling of 8-bit pixels where it is faster than Pillow's.

Both filter alike (antialiased, with the same kernels) and differ in rounding. torch has vectorised code for three
channels on processors with AVX2; `benchmarks/decoders.py` compares them.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode  # pyright: ignore[reportMissingTypeStubs]
from torchvision.transforms.functional import pil_modes_mapping  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["resized_center_crop", "resized_crop"]

_FILTERS = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}


def resized_crop(
    image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int], interpolation: InterpolationMode
) -> Image.Image:
    """The crop `box` (top, left, height, width), resized to `size` (height, width): torchvision's `resized_crop`.

    With AVX2, of an RGB image and for bilinear or bicubic, a value may differ from Pillow's by one level of 255, rarely
    by two.
    """
    top, left, height, width = box
    part = image.crop((left, top, left + width, top + height))
    if not _vectorised(part, interpolation):
        return part.resize((size[1], size[0]), pil_modes_mapping[interpolation])
    return Image.fromarray(_resized(part, size, interpolation).numpy())


def resized_center_crop(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int], interpolation: InterpolationMode
) -> Image.Image:
    """The image resized to `size`, of which the middle `crop` is kept (both height, width, the latter no larger).

    Pillow computes the crop alone, as a box in single precision, so that now and then a value is rounded the other way.
    """
    (height, width), (crop_height, crop_width) = size, crop
    top, left = round((height - crop_height) / 2), round((width - crop_width) / 2)
    if _vectorised(image, interpolation):
        pixels = _resized(image, size, interpolation)[top : top + crop_height, left : left + crop_width]
        return Image.fromarray(pixels.numpy())
    x, y = image.width / width, image.height / height
    right, bottom = min(image.width, (left + crop_width) * x), min(image.height, (top + crop_height) * y)
    return image.resize(
        (crop_width, crop_height), pil_modes_mapping[interpolation], box=(left * x, top * y, right, bottom)
    )


def _resized(image: Image.Image, size: tuple[int, int], interpolation: InterpolationMode) -> torch.Tensor:
    """(height, width, 3), uint8."""
    pixels = torch.as_tensor(np.array(image)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size, mode=_FILTERS[interpolation], antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).contiguous()


def _vectorised(image: Image.Image, interpolation: InterpolationMode) -> bool:
    return image.mode == "RGB" and interpolation in _FILTERS and _has_avx2()


@cache
def _has_avx2() -> bool:
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
