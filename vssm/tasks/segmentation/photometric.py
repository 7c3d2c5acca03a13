"""Colours of training images, varied as mmseg's PhotoMetricDistortion varies them."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF  # pyright: ignore[reportMissingTypeStubs]

BRIGHTNESS = 32.0  # levels of 255
FACTORS = (0.5, 1.5)  # of contrast and saturation
HUE = 18.0  # of 180: 36 degrees


@dataclass(frozen=True)
class Distortion:
    """One draw; what is None is left alone.

    brightness: levels of 255 that are added. contrast: factor on all values. saturation: factor on HSV's S. hue: added
    to HSV's H, of 180. late: contrast after saturation and hue, not before.
    """

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    late: bool = False

    @classmethod
    def draw(cls) -> "Distortion":
        """From the `random` generator: each with probability 1/2, its value uniform."""
        return cls(
            brightness=_maybe(-BRIGHTNESS, BRIGHTNESS),
            late=random.random() < 0.5,
            contrast=_maybe(*FACTORS),
            saturation=_maybe(*FACTORS),
            hue=_maybe(-HUE, HUE),
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """(H, W, 3) in 0..255 -> the same shape, uint8. Values are cut off at 0 and 255 after every step; they are
        rounded once, at the end, where mmseg drops the fraction after every step."""
        x = pixels.float()
        if self.brightness is not None:
            x = (x + self.brightness).clamp(0, 255)
        if self.contrast is not None and not self.late:
            x = (x * self.contrast).clamp(0, 255)
        if self.saturation is not None:
            x = _saturate(x, self.saturation)
        if self.hue is not None:
            turned: Tensor = TF.adjust_hue(x.movedim(-1, 0) / 255, self.hue / 180)
            x = turned.movedim(0, -1) * 255
        if self.contrast is not None and self.late:
            x = (x * self.contrast).clamp(0, 255)
        return x.round().clamp(0, 255).to(torch.uint8)


def _maybe(low: float, high: float) -> float | None:
    return random.uniform(low, high) if random.random() < 0.5 else None


def _saturate(x: Tensor, factor: float) -> Tensor:
    """HSV's S times `factor`, at most 1. With H and V fixed, a channel c is V (1 - S s), s fixed too: its distance from
    the largest channel grows by the factor."""
    value = x.amax(-1, keepdim=True)
    spread = value - x.amin(-1, keepdim=True)
    most = value / spread.clamp(min=1e-6)  # S of 1
    return value - (value - x) * most.clamp(max=factor)
