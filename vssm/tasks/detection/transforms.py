"""From an image and its annotated objects to what a detector trains on or is evaluated on."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from vssm.data.coco import Objects

from vssm.data.keep_ratio import KeepRatio, resize_pixels, size_within

Sample = tuple[tuple[Tensor, tuple[int, int]], dict[str, Tensor]]


class DetectionTransform:
    """(PIL image, Objects) -> ((image (3, h, w) normalised, (H, W) of the file), target of `vssm.tasks.detection`).

    preprocess: longest and shortest side, normalisation.
    sides: a shorter side is drawn from these for each image; that of `preprocess` when there are none.
    flip: probability of the mirrored image.
    masks: the target has the masks of the objects.

    Crowds are left out, as mmdet leaves them out. Masks are resized to the nearest pixel, as mmdet resizes bitmaps; one
    at a time, so that no more than the resized ones are in memory.
    """

    def __init__(self, preprocess: KeepRatio, sides: tuple[int, ...] = (), flip: float = 0.0, masks: bool = True):
        self.preprocess, self.sides, self.flip, self.masks = preprocess, sides, flip, masks

    def __call__(self, image: Image.Image, objects: Objects) -> Sample:
        original = image.height, image.width
        short = random.choice(self.sides) if self.sides else self.preprocess.short_side
        size = size_within(original, short, self.preprocess.long_side)
        pixels = resize_pixels(torch.as_tensor(np.array(image)), size)
        target = self._target(objects.take(~objects.crowd), size)
        if self.flip > 0 and random.random() < self.flip:
            pixels, target = _mirrored(pixels, target, size[1])
        return (self.preprocess.transform().normalise(pixels), original), target

    def _target(self, objects: Objects, size: tuple[int, int]) -> dict[str, Tensor]:
        (height, width), (h, w) = objects.size, size
        factors = torch.tensor([w / width, h / height, w / width, h / height], dtype=torch.float64)
        target = {
            "boxes": (torch.from_numpy(objects.boxes.copy()) * factors).float(),
            "labels": torch.from_numpy(objects.labels.copy()),
        }
        if self.masks:
            target["masks"] = torch.zeros(len(objects), h, w, dtype=torch.bool)
            for index in range(len(objects)):
                whole = torch.from_numpy(objects.mask(index))
                target["masks"][index] = F.interpolate(whole[None, None].byte(), size, mode="nearest")[0, 0].bool()
        return target


class EvaluationTransform:
    """(PIL image, Objects) -> ((image (3, h, w) normalised, (H, W) of the file), {}): the objects are compared as they
    stand in the file."""

    def __init__(self, preprocess: KeepRatio):
        self.transform = preprocess.transform()

    def __call__(self, image: Image.Image, objects: Objects) -> Sample:
        return (self.transform(image), (image.height, image.width)), {}


def _mirrored(pixels: Tensor, target: dict[str, Tensor], width: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Left and right exchanged."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    flipped = {**target, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(-1)
    return pixels.flip(1), flipped
