"""Which sizes of the input stay free, and at which sizes an exported file is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vssm.models.base import Backbone

__all__ = ["DYNAMIC", "Sizes"]

DYNAMIC = ("batch", "height", "width")
LARGEST_BATCH, LARGEST_SIDE = 1024, 8192
# Other networks than this package's may take multiples of their stride only.
STRIDE = 32

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Sizes:
    """input_size: (C, H, W) of the check, and of the file where it is fixed. dynamic: what stays free of "batch",
    "height" and "width". smallest: the least free side. any_side: whether sides may be no multiple of 32."""

    input_size: tuple[int, int, int]
    dynamic: tuple[str, ...] = ("batch",)
    smallest: int = STRIDE
    any_side: bool = False

    @classmethod
    def of(cls, model: nn.Module, input_size: tuple[int, int, int], dynamic: Sequence[str]) -> "Sizes":
        """Raises ValueError for a size that no input has."""
        unknown = [size for size in dynamic if size not in DYNAMIC]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} cannot stay free: choose among {', '.join(DYNAMIC)}")
        backbones = [module for module in model.modules() if isinstance(module, Backbone)]
        smallest = max([min(STRIDE, *input_size[1:]), *(backbone.min_size for backbone in backbones)])
        return cls(input_size, tuple(size for size in DYNAMIC if size in dynamic), smallest, bool(backbones))

    def traced(self) -> tuple[str, ...]:
        """What is free in the program: both sides, where one is. torch.export cannot reason about the strides of maps
        with one free side."""
        sides = DYNAMIC[1:] if set(DYNAMIC[1:]) & set(self.dynamic) else ()
        return (*(("batch",) if "batch" in self.dynamic else ()), *sides)

    def example(self) -> Shape:
        """What the network is traced with: free sizes are far from 1, and no two are the same."""
        channels, height, width = self.input_size
        if "height" in self.traced():
            height = max(height, 4 * self.smallest)
        if "width" in self.traced():
            width = max(width, 4 * self.smallest) + 2 * STRIDE
        return (2 if "batch" in self.dynamic else 1), channels, height, width

    def dims(self) -> tuple[dict[int, Any]] | None:
        """`dynamic_shapes` of torch.export."""
        side = dict(min=self.smallest, max=LARGEST_SIDE)
        made = {
            "batch": (0, torch.export.Dim("batch", min=1, max=LARGEST_BATCH)),
            "height": (2, torch.export.Dim("height", **side)),
            "width": (3, torch.export.Dim("width", **side)),
        }
        return (dict(made[size] for size in self.traced()),) if self.dynamic else None

    def shapes(self) -> list[Shape]:
        """(B, C, H, W) of the comparisons: the file's own size at one and three images, then others as far as they
        are free: larger, and odd ones."""
        channels, height, width = self.input_size
        free = [size in self.dynamic for size in DYNAMIC]
        several = 3 if free[0] else 1
        wanted = [(1, 0, 0), (several, 0, 0), (1, STRIDE, 2 * STRIDE)]
        if self.any_side:
            wanted.append((several - 1 or 1, 13, 5))
        found: list[Shape] = []
        for batch, more, wider in wanted:
            shape = (batch, channels, height + more * free[1], width + wider * free[2])
            if shape not in found:
                found.append(shape)
        return found
