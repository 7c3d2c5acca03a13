"""From a PIL image to a model's input: the steps of timm's transforms, the slow ones made faster."""

import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import (  # pyright: ignore[reportMissingTypeStubs]
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
)

from vssm.data.resize import resized_center_crop, resized_crop

__all__ = ["ImageTransform", "PixelTransform", "ResizedCenterCrop"]


class ImageTransform:
    """A transform of timm's `create_transform`, in two halves: PIL image -> 8-bit pixels -> normalised tensor.

    `normalise` takes any number of images at once, on any device, and gives to the bit what torchvision's ToTensor and
    Normalize give. Cropping and resizing differ from timm's in rounding, see `vssm.data.resize`: with AVX2, bicubic, in
    0.35 % of the values of a photograph by one level of 255, and in about 1e-6 of them by two.
    `min_side` is for `open_image`: how small a large JPEG may be decoded.
    """

    def __init__(self, timm_transform: Any, min_side: int | None = None):
        steps = list(timm_transform.transforms)
        at = next(position for position, step in enumerate(steps) if isinstance(step, MaybeToTensor))
        normalize = steps[at + 1]
        assert isinstance(normalize, Normalize), f"timm normalises after MaybeToTensor, not {normalize}"
        self.min_side = min_side
        self.image_steps = Compose(_crop_while_resizing(steps[:at]))
        mean, std = cast(Any, normalize).mean, cast(Any, normalize).std
        self.mean = torch.as_tensor(mean).view(-1, 1, 1)
        self.std = torch.as_tensor(std).view(-1, 1, 1)
        self.tensor_steps = Compose(steps[at + 2 :])

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image (RGB or L) -> (C, H, W), float32."""
        steps = cast(Callable[[Tensor], Tensor], self.tensor_steps)
        return steps(self.normalise(self.pixels(image)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.image_steps}, {self.tensor_steps}, min_side={self.min_side})"

    def pixels(self, image: Image.Image) -> Tensor:
        """PIL image (RGB or L) -> (H, W, C), uint8."""
        values = np.array(self.image_steps(image))
        return torch.as_tensor(values if values.ndim == 3 else values[..., None])

    def normalise(self, pixels: Tensor) -> Tensor:
        """(..., H, W, C) in 0..255 -> (..., C, H, W), float32: scaled to 0..1, minus the mean, over the deviation."""
        images = pixels.movedim(-1, -3).contiguous().float()
        return images.div_(255).sub_(self.mean.to(images.device)).div_(self.std.to(images.device))


class PixelTransform:
    """The first half of an ImageTransform alone, for a loader whose batches are normalised when they have arrived.

    8-bit pixels are a quarter of what floats take on the way from a loader's process and to a device.
    """

    def __init__(self, whole: ImageTransform):
        self.whole, self.min_side = whole, whole.min_side

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image (RGB or L) -> (H, W, C), uint8."""
        return self.whole.pixels(image)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.whole})"

    @classmethod
    def possible(cls, transform: Any) -> bool:
        """Whether nothing is left to do after the normalisation, as random erasing would be."""
        return isinstance(transform, ImageTransform) and not transform.tensor_steps.transforms


class ResizedCenterCrop:
    """torchvision's Resize to a shorter side and CenterCrop, computed by `resized_crop`."""

    def __init__(self, side: int, crop: tuple[int, int], interpolation: InterpolationMode):
        self.side, self.crop, self.interpolation = side, crop, interpolation

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.side}, {self.crop}, {self.interpolation.value})"

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        resized_width, resized_height = (self.side * length // short for length in image.size)
        return resized_center_crop(image, (resized_height, resized_width), self.crop, self.interpolation)


class RandomResizedCrop:
    """timm's RandomResizedCropAndInterpolation, with the same random numbers, computed by `resized_crop`."""

    def __init__(self, timm_crop: RandomResizedCropAndInterpolation):
        self.timm_crop: Any = timm_crop

    def __repr__(self) -> str:
        return repr(self.timm_crop)

    def __call__(self, image: Image.Image) -> Image.Image:
        crop = self.timm_crop
        box = crop.get_params(image, crop.scale, crop.ratio)
        mode: InterpolationMode | Sequence[InterpolationMode] = crop.interpolation
        if not isinstance(mode, InterpolationMode):
            mode = random.choice(mode)
        return resized_crop(image, box, crop.size, mode)


def _crop_while_resizing(steps: Sequence[Any]) -> list[Any]:
    """Replaces Resize and CenterCrop, but where the crop has to pad, and for nearest, which a box shifts."""
    if len(steps) == 2 and isinstance(steps[0], Resize) and isinstance(steps[1], CenterCrop):
        resize, crop = cast(Any, steps[0]), cast(Any, steps[1])
        height, width = crop.size
        nearest = resize.interpolation == InterpolationMode.NEAREST
        if isinstance(resize.size, int) and resize.size >= max(height, width) and not nearest:
            return [ResizedCenterCrop(resize.size, (height, width), resize.interpolation)]
    return [RandomResizedCrop(step) if type(step) is RandomResizedCropAndInterpolation else step for step in steps]
