"""Effective receptive fields: how much every input pixel contributes to one pixel of a feature map.

Luo et al. 2016, as VMamba (arXiv 2401.10166, figures 6 and 10) and Spatial-Mamba (arXiv 2410.15091, appendix G) draw
them, after Ding et al. 2022: s = sum over channels of relu(F[:, row, column]), G = relu(ds / dimage) summed over the
colours, averaged over images.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vssm.analysis.parts import NoSuchPart

__all__ = ["THRESHOLDS", "ReceptiveField", "Square", "effective_receptive_field", "feature_map"]

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


@dataclass(frozen=True)
class Square:
    """The smallest square around the target that holds more than `threshold` of the contributions: its side in pixels,
    and the share of the image that it covers. A square that reaches beyond the image is cut."""

    threshold: float
    side: int
    share: float


@dataclass(frozen=True)
class ReceptiveField:
    """What `effective_receptive_field` found.

    Attributes:
        map: mean contribution of every pixel (H, W), float64, not normalised.
        target: row and column of the pixel of the feature map.
        center: the same pixel on the image; the image's own centre where no target was given, as in the papers.
        grid: rows and columns of the feature map.
        images, skipped: images in the mean, and those left out, whose gradients were not finite or all zero.
    """

    map: Tensor
    target: tuple[int, int]
    center: tuple[int, int]
    grid: tuple[int, int]
    images: int
    skipped: int

    def normalised(self, power: float = 0.2) -> Tensor:
        """The map as the papers draw it: contributions to the power 0.2, over the largest. (H, W), 0 to 1."""
        raised = self.map**power
        return raised / raised.max()

    def square(self, threshold: float) -> Square:
        """How large a square around the target holds more than this share of all contributions."""
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
        height, width = self.map.shape
        row, column = self.center
        total = torch.zeros(height + 1, width + 1, dtype=self.map.dtype, device=self.map.device)
        total[1:, 1:] = self.map.cumsum(0).cumsum(1)
        reach, (top, bottom, left, right) = 0, (0, height, 0, width)
        for reach in range(max(height, width)):
            top, bottom = max(0, row - reach), min(height, row + reach + 1)
            left, right = max(0, column - reach), min(width, column + reach + 1)
            held = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
            if held > threshold * total[-1, -1]:
                break
        return Square(threshold, 2 * reach + 1, (bottom - top) * (right - left) / (height * width))

    def squares(self, thresholds: Iterable[float] = THRESHOLDS) -> list[Square]:
        return [self.square(threshold) for threshold in thresholds]


def effective_receptive_field(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    stage: int = -1,
    target: tuple[int, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ReceptiveField:
    """Contribution of every input pixel to one pixel of a feature map, averaged over images.

    Args:
        model: one with feature maps: any of timm's, this package's networks, or a module that returns a map
            (B, C, h, w) or a list of them. Its weights get no gradients, and it is left as it was. It should be in
            evaluation mode: in training mode batch norm and drop path give another answer.
        images: (N, 3, H, W), (3, H, W), or an iterable of images (3, H, W) or batches (B, 3, H, W), all of one size,
            prepared as the model expects them. A batch is one pass: its size bounds the memory. Where the model can,
            activations are recomputed in the backward.
        stage: which feature map, see `forward_intermediates`; -1 for the last, without the final norm.
        target: row and column of the feature map; None for its centre, h // 2 and w // 2.
        progress: called with the number of images done.

    Raises ValueError for a model without feature maps, images of several sizes, no image that could be used; IndexError
    for a stage or target that is not there, with the valid choices.
    """
    total: Tensor | None = None
    grid = at = size = None
    used = skipped = 0
    with _recomputing(model), _without_gradients(model):
        for batch in _batches(images):
            if size is not None and tuple(batch.shape[-2:]) != size:
                raise ValueError(
                    f"images must have one size; after {size[0]} x {size[1]} came {batch.shape[-2]} x {batch.shape[-1]}"
                )
            size = tuple(batch.shape[-2:])
            image = batch.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                features = feature_map(model, image, stage)
                grid = tuple(features.shape[-2:])
                at = _target(target, grid)
                score = torch.relu(features[:, :, at[0], at[1]]).sum()
                (gradient,) = torch.autograd.grad(score, image)
            maps = torch.relu(gradient).sum(1).double()
            usable = maps.flatten(1).isfinite().all(1) & (maps.flatten(1).sum(1) > 0)
            kept = maps[usable].sum(0)
            total = kept if total is None else total + kept
            used, skipped = used + int(usable.sum()), skipped + int((~usable).sum())
            if progress is not None:
                progress(used + skipped)
    if total is None or size is None or grid is None or at is None:
        raise ValueError("there are no images; give at least one")
    if not used:
        raise ValueError(f"none of {skipped} images gave a gradient that is finite and not zero everywhere")
    center = tuple((2 * i + 1) * side // (2 * n) for i, side, n in zip(at, size, grid, strict=True))
    if target is None:  # the papers' squares are around the centre of the image
        center = (size[0] // 2, size[1] // 2)
    return ReceptiveField(total / used, at, center, grid, used, skipped)  # type: ignore[arg-type]


def feature_map(model: nn.Module, x: Tensor, stage: int = -1) -> Tensor:
    """The feature map (B, C, h, w) of a stage. ValueError and NoSuchPart as `effective_receptive_field`."""
    found = _feature_maps(getattr(model, "backbone", model), x, stage)
    maps = list(found) if isinstance(found, list | tuple) else [found]
    if not maps or any(not isinstance(f, Tensor) or f.dim() != 4 for f in maps):
        shapes = [tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__ for f in maps]
        raise ValueError(
            f"{type(model).__name__} has no feature maps: it returns {shapes}, and has no forward_intermediates; give "
            "a model of timm's, or one that returns (B, C, h, w)"
        )
    if not -len(maps) <= stage < len(maps):
        raise NoSuchPart(f"there is no stage {stage}: the model has {len(maps)} feature maps, 0 to {len(maps) - 1}")
    return maps[stage]


def _feature_maps(model: nn.Module, x: Tensor, stage: int):
    intermediates = getattr(model, "forward_intermediates", None)
    if intermediates is None:
        return model(x)
    return intermediates(x, intermediates_only=True, stop_early=stage >= 0)


def _target(target: tuple[int, int] | None, grid: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = grid
    if target is None:
        return rows // 2, columns // 2
    row, column = target
    if not (0 <= row < rows and 0 <= column < columns):
        raise NoSuchPart(f"target ({row}, {column}) is outside of the feature map, which has {rows} x {columns} pixels")
    return row, column


def _batches(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    if isinstance(images, Tensor) and images.dim() == 3:
        images = [images]
    for image in images:  # a tensor (N, 3, H, W) gives its images one by one
        if image.dim() not in (3, 4):
            raise ValueError(f"expected an image (3, H, W) or a batch (B, 3, H, W), got {tuple(image.shape)}")
        yield image[None] if image.dim() == 3 else image


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Gradient checkpointing, where the model knows it; afterwards as it was."""
    flags = {
        m: m.grad_checkpointing for m in model.modules() if isinstance(getattr(m, "grad_checkpointing", None), bool)
    }
    for module in flags:
        setattr(module, "grad_checkpointing", True)  # noqa: B010
    try:
        yield
    finally:
        for module, flag in flags.items():
            setattr(module, "grad_checkpointing", flag)  # noqa: B010


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Weights that need none: their gradients would cost time and memory."""
    needed = [p for p in model.parameters() if p.requires_grad]
    for p in needed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in needed:
            p.requires_grad_(True)
