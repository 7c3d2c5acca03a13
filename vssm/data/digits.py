"""Handwritten digits that need no download: 1797 scans of 8x8, bundled with scikit-learn, enlarged to 32x32.

The scans were made at NIST by 43 writers (Kaynak 1995; "Optical Recognition of Handwritten Digits", UCI).
"""

from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vssm.data.augment import random_affine
from vssm.data.preprocess import Preprocess

__all__ = ["CLASSES", "MEAN", "STD", "TEST_FRACTION", "Digits", "load_digits", "preprocess"]

CLASSES = tuple("0123456789")
TEST_FRACTION = 0.2
# Mean and standard deviation of all pixels of the enlarged scans, grey values in 0..1.
MEAN, STD = (0.309,), (0.349,)


class Digits(Dataset[tuple[Tensor, int]]):
    """Normalised images (1, size, size) with their digit, and where in scikit-learn's array each came from."""

    def __init__(self, images: Tensor, labels: Tensor, positions: np.ndarray, background: float, augment: bool):
        self.images, self.labels, self.positions = images, labels, positions
        self.background, self.augment = background, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.augment:
            image = random_affine(image, fill=self.background)
        return image, int(self.labels[index])


def preprocess(size: int = 32, interpolation: str = "bicubic") -> Preprocess:
    return Preprocess((1, size, size), MEAN, STD, interpolation, crop_pct=1.0)


def load_digits(
    size: int = 32, augment: bool = True, split_seed: int = 0, interpolation: str = "bicubic"
) -> tuple[Digits, Digits]:
    """Training (1437) and test (360) digits; the 20 % for the test are drawn with `split_seed`, equal per class."""
    from sklearn import datasets  # pyright: ignore[reportMissingTypeStubs]
    from sklearn.model_selection import (  # pyright: ignore[reportMissingTypeStubs]
        train_test_split,  # pyright: ignore[reportUnknownVariableType]
    )

    scans, labels = cast(tuple[np.ndarray, np.ndarray], datasets.load_digits(return_X_y=True))
    indices = np.arange(len(labels))
    split = cast(Any, train_test_split)
    train, test = split(indices, test_size=TEST_FRACTION, stratify=labels, random_state=split_seed)
    transform = preprocess(size, interpolation).transform()
    grey = np.round(scans.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = torch.stack([torch.as_tensor(transform(Image.fromarray(scan))) for scan in grey])
    background = -MEAN[0] / STD[0]

    def subset(positions: np.ndarray, augment: bool) -> Digits:
        chosen = torch.as_tensor(positions)
        return Digits(images[chosen], torch.as_tensor(labels)[chosen].long(), positions, background, augment)

    return subset(train, augment), subset(test, augment=False)
