"""Position embeddings on another grid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resize_map", "resize_positions", "square_grid"]


def resize_map(positions: Tensor, height: int, width: int) -> Tensor:
    """A position embedding (1, C, H, W) on a grid height x width: bicubic, corners not aligned."""
    if positions.dtype == torch.float64:
        return F.interpolate(positions, size=[height, width], mode="bicubic", align_corners=False)
    wide = F.interpolate(positions.float(), size=[height, width], mode="bicubic", align_corners=False)
    return wide.to(positions.dtype)


def resize_positions(positions: Tensor, height: int, width: int, new_height: int, new_width: int) -> Tensor:
    """A position embedding of tokens (1, L, C), on a grid height x width, for another grid.

    With one token more than the grid has cells, a class token in the middle: it keeps its values and stays in
    the middle. (The official code of Vim takes row 0 for it, which shifts the first half of the image by one token.)
    """
    tokens = positions.shape[1] - height * width
    middle = height * width // 2
    grid = torch.cat([positions[:, :middle], positions[:, middle + tokens :]], dim=1)
    grid = resize_map(grid.view(1, height, width, -1).permute(0, 3, 1, 2), new_height, new_width)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new_height * new_width, -1)
    new_middle = new_height * new_width // 2
    return torch.cat([grid[:, :new_middle], positions[:, middle : middle + tokens], grid[:, new_middle:]], dim=1)


def square_grid(positions: Tensor, class_token: bool) -> int | None:
    """The side of the square grid of tokens (1, L, C), with or without a class token; None when it is not square."""
    cells = positions.shape[1] - int(class_token)
    side = math.isqrt(cells)
    return side if side * side == cells else None
