"""Images of different sizes in one batch: padded at the right and at the bottom, with the sizes beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["PaddedImages"]

Size = tuple[int, int]


@dataclass(frozen=True)
class PaddedImages:
    """A batch for detection, as mmdet's DetDataPreprocessor pads one: zeros after normalisation, a multiple of 32.

    pixels: (B, C, H, W), floating point, normalised.
    sizes: (h, w) of each image inside the padding, after resizing.
    originals: (H, W) of each image file, before resizing; detections are given in its pixels.

    Raises:
        ValueError: pixels of another kind, or sizes that do not belong to them.
    """

    pixels: Tensor
    sizes: tuple[Size, ...]
    originals: tuple[Size, ...]

    def __post_init__(self) -> None:
        if self.pixels.dim() != 4 or not self.pixels.is_floating_point():
            raise ValueError(
                f"pixels must be (B, C, H, W) and floating point, got {list(self.pixels.shape)} of {self.pixels.dtype}"
            )
        if not len(self.sizes) == len(self.originals) == len(self.pixels):
            raise ValueError(
                f"{len(self.pixels)} images need as many sizes and originals, got {len(self.sizes)} and "
                f"{len(self.originals)}"
            )
        height, width = self.pixels.shape[-2:]
        for index, ((h, w), original) in enumerate(zip(self.sizes, self.originals)):
            if not (0 < h <= height and 0 < w <= width):
                raise ValueError(f"image {index} is {h} x {w}, which does not fit into pixels of {height} x {width}")
            if min(original) < 1:
                raise ValueError(
                    f"the original of image {index} is {original[0]} x {original[1]}; both must be positive"
                )

    @classmethod
    def of(
        cls, images: Sequence[Tensor], originals: Sequence[Size] | None = None, multiple: int = 32
    ) -> "PaddedImages":
        """Pads images (C, h, w) of one number of channels to the largest height and width, rounded up to `multiple`.

        originals: sizes of the image files; by default those of the images, which then were not resized.

        Raises:
            ValueError: no images, or images that cannot be in one batch.
        """
        if not images:
            raise ValueError("no images; a batch has at least one")
        if multiple < 1:
            raise ValueError(f"multiple must be at least 1, got {multiple}")
        for index, image in enumerate(images):
            if image.dim() != 3 or not image.is_floating_point() or min(image.shape) < 1:
                raise ValueError(
                    f"image {index} must be (C, h, w), floating point and not empty, got {list(image.shape)} of "
                    f"{image.dtype}"
                )
            if image.shape[0] != images[0].shape[0]:
                raise ValueError(f"image {index} has {image.shape[0]} channels, the first one {images[0].shape[0]}")
        sizes = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
        height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*sizes))
        pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for into, image, (h, w) in zip(pixels, images, sizes):
            into[:, :h, :w] = image
        given = sizes if originals is None else tuple((int(h), int(w)) for h, w in originals)
        return cls(pixels, sizes, given)

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PaddedImages":
        """The batch on another device."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PaddedImages":
        """The batch in page-locked memory: called by a DataLoader with pin_memory=True."""
        return replace(self, pixels=self.pixels.pin_memory())
