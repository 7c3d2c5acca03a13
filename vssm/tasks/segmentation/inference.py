"""How a segmentation network is applied to images: as a whole, in windows, at several scales, mirrored."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.data.padded import PaddedImages

# Values of the full-size scores that are in memory at a time: 64 MB.
STRIP = 1 << 24

Size = tuple[int, int]


@dataclass(frozen=True)
class LabelMap:
    """The class of every pixel of an image file: labels (H, W), uint8. finite: the network gave no NaN or infinity."""

    labels: Tensor
    finite: bool = True


class View(Protocol):
    """Scores of an image at the size of the network's input (h, w)."""

    size: Size

    def rows(self, start: int, stop: int) -> Tensor:
        """(K, stop - start, w)"""
        ...

    def is_finite(self) -> bool: ...


class Inference:
    """Images of any sizes -> a LabelMap of each, at the size of its file.

    One image at a time, without padding, as mmseg tests.

    Args:
        model: (1, C, H, W) to scores (1, K, h, w), in evaluation mode. Where it has a `multiple`, sides are padded to
            it with 0, and the scores cut off again.
        scales: factors of the image size; other sizes are resized from the input. With several, or with `flip`, the
            label is that of the largest mean probability.
        flip: each scale mirrored too.
        window: apply the network to windows of this side and average the scores where they overlap; smaller images are
            taken whole.
        stride: step of the windows; two thirds of the side when not given.

    Scores are resized to the network's input and from there to the image file, bilinear, like mmseg's. Full-size
    scores exist for a strip of rows at a time, those of the network's output, sixteen times smaller, for a whole image;
    with windows those of the input.
    """

    def __init__(
        self,
        model: nn.Module,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: int | None = None,
        stride: int | None = None,
    ):
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales are {list(scales)}; expected factors above 0")
        if window is None and stride is not None:
            raise ValueError(f"a stride of {stride} has a meaning with a window only; give both, or none")
        if window is not None and window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        step = max(1, 2 * window // 3) if window is not None and stride is None else stride
        if window is not None and step is not None and not 1 <= step <= window:
            raise ValueError(f"stride is {step} with a window of {window}; it must be from 1 to the window's side")
        self.model, self.scales, self.flip = model, tuple(scales), flip
        self.window, self.stride = window, step
        self.multiple = int(getattr(model, "multiple", 1))

    def __call__(self, images: PaddedImages) -> list[LabelMap]:
        sizes = zip(images.pixels, images.sizes, images.originals, strict=True)
        return [self._label(pixels[:, :h, :w], original) for pixels, (h, w), original in sizes]

    def _label(self, image: Tensor, original: Size) -> LabelMap:
        mirrors = (False, True) if self.flip else (False,)
        views = [(self._view(image, scale, mirror), mirror) for scale in self.scales for mirror in mirrors]
        labels = torch.empty(original, dtype=torch.uint8, device=image.device)
        for start, stop in strips(original, self._classes(views[0][0])):
            scores = [at_size(view, original, start, stop, mirror) for view, mirror in views]
            if len(scores) > 1:
                scores = [torch.stack([one.softmax(0) for one in scores]).sum(0)]
            labels[start:stop] = scores[0].argmax(0)
        return LabelMap(labels, all(view.is_finite() for view, _ in views))

    @staticmethod
    def _classes(view: View) -> int:
        return view.rows(0, 1).shape[0]

    def _view(self, image: Tensor, scale: float, mirror: bool) -> View:
        x = image[None]
        if scale != 1:
            size = [max(1, int(side * scale + 0.5)) for side in image.shape[-2:]]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = x.flip(-1) if mirror else x
        height, width = x.shape[-2:]
        if self.window is None or (height <= self.window and width <= self.window):
            return self._whole(x)
        return self._windows(x, self.window)

    def _whole(self, x: Tensor) -> "Whole":
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        padded = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
        return Whole(self.model(padded)[0].float(), (height + bottom, width + right), (height, width))

    def _windows(self, x: Tensor, side: int) -> "Averaged":
        assert self.stride is not None
        height, width = x.shape[-2:]
        total, count = None, x.new_zeros(height, width, dtype=torch.float32)
        for top in _starts(height, side, self.stride):
            for left in _starts(width, side, self.stride):
                window = x[:, :, top : top + side, left : left + side]
                scores = self._whole(window).rows(0, window.shape[-2])
                if total is None:
                    total = scores.new_zeros(len(scores), height, width)
                total[:, top : top + side, left : left + side] += scores
                count[top : top + side, left : left + side] += 1
        assert total is not None
        return Averaged(total.div_(count))


class Whole:
    """A network's scores (K, h', w'), resized only when they are asked for: to `padded`, of which `size` is kept."""

    def __init__(self, scores: Tensor, padded: Size, size: Size):
        self.scores, self.padded, self.size = scores, padded, size

    def rows(self, start: int, stop: int) -> Tensor:
        return resized_rows(self.scores, self.padded, start, stop)[:, :, : self.size[1]]

    def is_finite(self) -> bool:
        return bool(self.scores.isfinite().all())


class Averaged:
    """Scores (K, h, w) at the size of the input."""

    def __init__(self, scores: Tensor):
        height, width = scores.shape[-2:]
        self.scores, self.size = scores, (height, width)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.scores[:, start:stop]

    def is_finite(self) -> bool:
        return bool(self.scores.isfinite().all())


def strips(size: Size, classes: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of an image (H, W) whose scores are at most STRIP values, one row at least."""
    height, width = size
    rows = max(1, STRIP // (classes * width))
    return ((start, min(start + rows, height)) for start in range(0, height, rows))


def at_size(view: View, size: Size, start: int, stop: int, mirror: bool = False) -> Tensor:
    """Rows start..stop of a view's scores at another size (H, W), mirrored back: (K, stop - start, W)."""
    height = view.size[0]
    low, high = _source_rows(height, size[0], start, stop)
    rows = view.rows(low, high)
    rows = rows.flip(-1) if mirror else rows
    return _interpolated(rows, low, height, size, start, stop)


def resized_rows(x: Tensor, size: Size, start: int, stop: int) -> Tensor:
    """Rows start..stop of F.interpolate(x, size, mode="bilinear", align_corners=False), x (K, h, w)."""
    return _interpolated(x, 0, x.shape[1], size, start, stop)


def _source_rows(height: int, new: int, start: int, stop: int) -> tuple[int, int]:
    """The rows of a map of `height` that rows start..stop of one of `new` are made of."""
    below, above, _ = _neighbours(height, new, start, stop)
    return int(below[0]), int(above[-1]) + 1


def _neighbours(height: int, new: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows start..stop: the row above and below in the source, and the weight of the latter."""
    position = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * (height / new) - 0.5).clamp(min=0)
    first = position.floor().long().clamp(max=height - 1)
    return first, (first + 1).clamp(max=height - 1), position - first


def _interpolated(x: Tensor, offset: int, height: int, size: Size, start: int, stop: int) -> Tensor:
    """`x` are the rows from `offset` on of a map of `height` rows."""
    if (height, x.shape[2]) == size:
        return x[:, start - offset : stop - offset]
    first, second, weight = _neighbours(height, size[0], start, stop)
    weight = weight.to(x.device, x.dtype)[:, None]
    first, second = (first - offset).to(x.device), (second - offset).to(x.device)
    rows = x[:, first] * (1 - weight) + x[:, second] * weight
    wide = F.interpolate(rows[None], size=(stop - start, size[1]), mode="bilinear", align_corners=False)
    return wide[0]


def _starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin: every `stride`, the last one at the end."""
    count = max(math.ceil((length - side) / stride), 0) + 1
    return [max(min(number * stride, length - side), 0) for number in range(count)]
