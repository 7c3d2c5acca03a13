"""Small random changes of a tensor image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["random_affine"]


def random_affine(
    image: Tensor,
    fill: float,
    degrees: float = 12.0,
    shift: float = 0.08,
    scale: float = 0.12,
    shear: float = 0.15,
) -> Tensor:
    """Turns, moves, scales and shears one image (C, H, W) by uniform amounts; what comes in from outside is `fill`.

    Draws five numbers from torch's global generator. `shift` is a share of the side, `scale` and `shear` are relative.
    """
    angle, dx, dy, size, slant = map(float, torch.rand(5) * 2 - 1)
    angle *= math.radians(degrees)
    size = 1 + size * scale
    cos, sin = math.cos(angle) * size, math.sin(angle) * size
    slant *= shear
    matrix = torch.tensor(
        [
            [cos, cos * slant - sin, 2 * shift * dx],
            [sin, sin * slant + cos, 2 * shift * dy],
        ],
        dtype=image.dtype,
    )
    grid = F.affine_grid(matrix[None], [1, *image.shape], align_corners=False)
    # grid_sample pads with zeros: shift the background there first.
    moved = F.grid_sample((image - fill)[None], grid, padding_mode="zeros", align_corners=False)
    return moved[0] + fill
