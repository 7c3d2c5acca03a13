"""State fusion in torch's own operators, for programs that run without this package.

One convolution per kernel. The border is repeated, and parts are added, on the NHWC map, whose rows are long; the
runtimes then turn the map in the convolution itself. The size of the map may be free.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def state_fusion(h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]) -> Tensor:
    """`reference.state_fusion`."""
    return _fused(h, kernels, alphas, dilations).permute(0, 3, 1, 2)


def readout(
    h: Tensor,
    kernels: Tensor,
    alphas: Tensor,
    C: Tensor,
    u: Tensor | None,
    D: Tensor | None,
    dilations: list[int],
) -> Tensor:
    """`reference.readout` of the fused map."""
    y = C.permute(0, 2, 3, 1) * _fused(h, kernels, alphas, dilations)
    if D is not None and u is not None:
        y = y + D * u.permute(0, 2, 3, 1)
    return y.permute(0, 3, 1, 2)


def _fused(h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]) -> Tensor:
    """(B, H, W, C)"""
    pixels, half, fused = h.permute(0, 2, 3, 1), kernels.shape[-1] // 2, None
    for i, dilation in enumerate(dilations):
        padded = _bordered(pixels, half * dilation).permute(0, 3, 1, 2)
        part = F.conv2d(padded, alphas[i] * kernels[i], dilation=dilation, groups=h.shape[1]).permute(0, 2, 3, 1)
        fused = part if fused is None else fused + part
    assert fused is not None
    return fused


def _bordered(x: Tensor, width: int) -> Tensor:
    """(B, H, W, C) with its border repeated so many times on each side."""
    for dim in (1, 2):
        size = x.shape[dim]
        places = torch.arange(-width, size + width, device=x.device).clamp(0, size - 1)
        x = x.index_select(dim, places)
    return x
