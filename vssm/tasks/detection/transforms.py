"""From an image and its annotated objects to what a detector trains on or is evaluated on."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vssm.data.coco import Objects
from vssm.data.keep_ratio import KeepRatio, resize_pixels, size_within

# mmdet's DETR-style augmentation of the 3x schedule.
CROP_SIDES, CROP_RANGE, UNBOUNDED, TRIES = (400, 500, 600), (384, 600), 4200, 10

Sample = tuple[tuple[Tensor, tuple[int, int]], dict[str, Tensor]]


class DetectionTransform:
    """(PIL image, Objects) -> ((image (3, h, w) normalised, (H, W) of the file), target of `vssm.tasks.detection`).

    preprocess: longest and shortest side, normalisation.
    sides: a shorter side is drawn from these for each image; that of `preprocess` when there are none.
    flip: probability of the mirrored image.
    crop: half of the images are cropped first, as for DETR: resized to a shorter side of `CROP_SIDES`, then a part with
        sides of `CROP_RANGE` is taken (the image's own where it is smaller). Objects outside of it are left out.
    masks: the target has the masks of the objects.

    Crowds are left out, as mmdet leaves them out. Masks are resized to the nearest pixel, as mmdet resizes bitmaps; one
    at a time, so that no more than the resized ones are in memory.
    """

    def __init__(
        self,
        preprocess: KeepRatio,
        sides: tuple[int, ...] = (),
        flip: float = 0.0,
        crop: bool = False,
        masks: bool = True,
    ):
        self.preprocess, self.sides, self.flip, self.crop, self.masks = preprocess, sides, flip, crop, masks

    def __call__(self, image: Image.Image, objects: Objects) -> Sample:
        original = image.height, image.width
        pixels, objects = torch.as_tensor(np.array(image)), objects.take(~objects.crowd)
        if self.crop and random.random() < 0.5:
            pixels, target = self._cropped(pixels, objects)
            pixels, target = self._resized(pixels, target)
        else:
            size = self._size(pixels)
            pixels, target = resize_pixels(pixels, size), self._target(objects, size)
        if self.flip > 0 and random.random() < self.flip:
            pixels, target = _mirrored(pixels, target, size[1])
        return (self.preprocess.transform().normalise(pixels), original), target

    def _size(self, pixels: Tensor) -> tuple[int, int]:
        short = random.choice(self.sides) if self.sides else self.preprocess.short_side
        return size_within((pixels.shape[0], pixels.shape[1]), short, self.preprocess.long_side)

    def _cropped(self, pixels: Tensor, objects: Objects) -> tuple[Tensor, dict[str, Tensor]]:
        """A part of the resized image with at least one object, found in ten tries, or else the whole."""
        size = size_within((pixels.shape[0], pixels.shape[1]), random.choice(CROP_SIDES), UNBOUNDED)
        pixels, target = resize_pixels(pixels, size), self._target(objects, size)
        for _ in range(TRIES):
            height, width = (random.randint(min(CROP_RANGE[0], side), min(CROP_RANGE[1], side)) for side in size)
            top, left = random.randint(0, size[0] - height), random.randint(0, size[1] - width)
            part = cut(target, top, left, height, width)
            if len(part["labels"]):
                return pixels[top : top + height, left : left + width], part
        return pixels, target

    def _resized(self, pixels: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        (height, width), size = pixels.shape[:2], self._size(pixels)
        factors = torch.tensor([size[1] / width, size[0] / height] * 2)
        target = {**target, "boxes": target["boxes"] * factors}
        if "masks" in target:
            resized = [resize_mask(mask, size) for mask in target["masks"]]
            target["masks"] = torch.stack(resized) if resized else torch.zeros(0, *size, dtype=torch.bool)
        return resize_pixels(pixels, size), target

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
                target["masks"][index] = resize_mask(torch.from_numpy(objects.mask(index)), size)
        return target


class EvaluationTransform:
    """(PIL image, Objects) -> ((image (3, h, w) normalised, (H, W) of the file), {}): the objects are compared as they
    stand in the file."""

    def __init__(self, preprocess: KeepRatio):
        self.transform = preprocess.transform()

    def __call__(self, image: Image.Image, objects: Objects) -> Sample:
        return (self.transform(image), (image.height, image.width)), {}


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) bool -> (h, w) bool, the nearest pixel."""
    return F.interpolate(mask[None, None].byte(), size, mode="nearest")[0, 0].bool()


def cut(target: dict[str, Tensor], top: int, left: int, height: int, width: int) -> dict[str, Tensor]:
    """The target of a part of an image: objects whose box has an area in it, boxes and masks cut off at its borders."""
    boxes = target["boxes"] - torch.tensor([left, top, left, top])
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=boxes.dtype))
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    part = {"boxes": boxes[kept], "labels": target["labels"][kept]}
    if "masks" in target:
        part["masks"] = target["masks"][kept, top : top + height, left : left + width]
    return part


def _mirrored(pixels: Tensor, target: dict[str, Tensor], width: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Left and right exchanged."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    flipped = {**target, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(-1)
    return pixels.flip(1), flipped
