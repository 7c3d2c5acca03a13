"""From an image and its labels to what a segmentation network trains on or is evaluated on."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vssm.data.keep_ratio import KeepRatio, resize_pixels, size_within
from vssm.data.mask_classes import IGNORED
from vssm.data.padded import PaddedImages
from vssm.settings import DataSettings
from vssm.tasks.segmentation.photometric import Distortion

TRIES = 10  # crops that may be refused


class Crop(NamedTuple):
    """A sample to train on: pixels (C, side, side), normalised, and labels (side, side), int64."""

    pixels: Tensor
    labels: Tensor


class Whole(NamedTuple):
    """A sample to evaluate on: pixels (C, h, w), resized and normalised, and labels (H, W), uint8, of the file."""

    pixels: Tensor
    labels: Tensor


class CropTransform:
    """(RGB image, labels (H, W)) -> Crop, by mmseg's rules for ADE20K:

    1. Resize with the aspect ratio kept, to the sides of `preprocess` times a factor from `resize_range`.
    2. Cut out a square. One of which a class covers more than `max_class_share` (ignored pixels not counted) is refused
       for another, ten times at most.
    3. Mirror with probability `flip`.
    4. Vary the colours (`Distortion`).
    5. Normalise, and fill up with 0, and 255 in the labels, where the image is smaller than the square.

    Everything is drawn from the `random` generator. With vary=False: the factor 1, the middle of the image, no more.
    """

    def __init__(
        self,
        preprocess: KeepRatio,
        side: int,
        resize_range: tuple[float, float] = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        vary: bool = True,
    ):
        self.preprocess, self.side, self.vary = preprocess, side, vary
        self.resize_range, self.max_class_share = resize_range, max_class_share
        self.flip, self.photometric = flip, photometric

    @classmethod
    def of(cls, preprocess: KeepRatio, settings: DataSettings) -> "CropTransform":
        low, high = settings.resize_range
        return cls(
            preprocess,
            settings.crop_size,
            (low, high),
            settings.max_class_share,
            settings.hflip,
            settings.photometric,
            settings.augment,
        )

    def __call__(self, image: Image.Image, labels: NDArray[np.uint8]) -> Crop:
        factor = random.uniform(*self.resize_range) if self.vary else 1.0
        size = _scaled((image.height, image.width), self.preprocess, factor)
        pixels = resize_pixels(torch.as_tensor(np.array(image)), size)
        # By the centres of pixels, as the image; OpenCV's nearest, which mmseg takes, moves labels by half a pixel.
        truth = resize_pixels(torch.as_tensor(labels)[..., None], size, "nearest-exact")[..., 0]
        top, left = self._corner(truth) if self.vary else _middle(size, self.side)
        pixels, truth = (x[top : top + self.side, left : left + self.side] for x in (pixels, truth))
        if self.vary and random.random() < self.flip:
            pixels, truth = pixels.flip(1), truth.flip(1)
        if self.vary and self.photometric:
            pixels = Distortion.draw()(pixels)
        normalised = self.preprocess.transform().normalise(pixels)
        beyond = (0, self.side - truth.shape[1], 0, self.side - truth.shape[0])
        return Crop(F.pad(normalised, beyond), F.pad(truth, beyond, value=IGNORED).long())

    def _corner(self, labels: Tensor) -> tuple[int, int]:
        top, left = _drawn_corner(labels, self.side)
        if self.max_class_share == 1:
            return top, left
        for _ in range(TRIES):
            if mixed(labels[top : top + self.side, left : left + self.side], self.max_class_share):
                break
            top, left = _drawn_corner(labels, self.side)
        return top, left


def mixed(labels: Tensor, share: float) -> bool:
    """Whether two or more classes are there and the largest covers less than `share` of what is not ignored."""
    counts = torch.bincount(labels.flatten(), minlength=IGNORED + 1)[:IGNORED]
    return int((counts > 0).sum()) > 1 and int(counts.max()) < share * int(counts.sum())


class WholeTransform:
    """(RGB image, labels (H, W)) -> Whole: the image resized and normalised, the labels as they are."""

    def __init__(self, preprocess: KeepRatio):
        self.transform = preprocess.transform()

    def __call__(self, image: Image.Image, labels: NDArray[np.uint8]) -> Whole:
        return Whole(self.transform(image), torch.as_tensor(labels))


def stack(samples: Sequence[Any]) -> tuple[Any, Any]:
    """Crops -> (B, C, side, side) and (B, side, side); whole images -> PaddedImages and a list of their labels."""
    if not samples:
        return torch.empty(0), []
    pixels, labels = [sample.pixels for sample in samples], [sample.labels for sample in samples]
    if isinstance(samples[0], Crop):
        return torch.stack(pixels), torch.stack(labels)
    return PaddedImages.of(pixels, [tuple(one.shape) for one in labels], multiple=1), labels


def _scaled(size: tuple[int, int], preprocess: KeepRatio, factor: float) -> tuple[int, int]:
    short, long = (max(1, int(side * factor)) for side in (preprocess.short_side, preprocess.long_side))
    return size_within(size, short, long)


def _drawn_corner(labels: Tensor, side: int) -> tuple[int, int]:
    top, left = (random.randrange(max(length - side, 0) + 1) for length in labels.shape)
    return top, left


def _middle(size: tuple[int, int], side: int) -> tuple[int, int]:
    top, left = (max(length - side, 0) // 2 for length in size)
    return top, left
