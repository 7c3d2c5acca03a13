"""Scan, fusion and readout in one pass of the compiled core (csrc/kernels/scan_fusion.cpp): no autograd."""

import struct

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.pointwise import ABSENT, channels_last, compute_dtype, dense, empty_map, typed
from vssm.ops.routes import RASTER, Route


def fits(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    kernels: list[Tensor],
    alphas: Tensor,
    dilations: list[int],
    routes: tuple[Route, ...],
) -> bool:
    """Whether the kernel takes these arguments. Wrong ones do not fit either: the composition names what is wrong."""
    if routes != RASTER or x.dim() != 4 or not dilations or len(dilations) != len(kernels) or min(dilations) < 1:
        return False
    batch, channels, height, width = x.shape
    if batch * channels * height * width == 0 or dt_weight.dim() != 3 or dt_weight.shape[2] == 0:
        return False
    kernel = (channels, 1, 3, 3)
    rank = dt_weight.shape[2]
    return (
        A.shape == (channels, 1)
        and D.shape == (channels,)
        and dt_weight.shape == (1, channels, rank)
        and dt_bias.shape == (1, channels)
        and x_proj_weight.shape == (1, rank + 2, channels)
        and alphas.shape == (len(kernels),)
        and all(k.shape == kernel and k.device == x.device for k in kernels)
        and x.device == x_proj_weight.device == dt_weight.device == dt_bias.device == A.device == D.device
    )


def forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    kernels: list[Tensor],
    alphas: Tensor,
    dilations: list[int],
) -> Tensor:
    """y (B, C, H, W) of the compute dtype; proj (B, H, W, R+2)."""
    stacked = torch.stack(kernels)
    dtype = compute_dtype(x, proj, dt_weight, dt_bias, A, D, stacked, alphas)
    x, proj, dt_weight, dt_bias = channels_last(x), dense(proj, dtype), dense(dt_weight, dtype), dense(dt_bias, dtype)
    if x.dtype is not dtype:
        x = x.to(dtype)
    A, D, stacked, alphas = dense(A, dtype), dense(D, dtype), dense(stacked, dtype), dense(alphas, dtype)
    batch, channels, height, width = x.shape
    is_double = dtype is torch.float64
    y = empty_map(x)
    # fmt: off
    values = (
        # ScanArgs: sizes and flags, u, dt, proj, dt_weight, dt_bias, A, D, and 16 addresses that are absent
        is_double, batch, 1, channels, height * width, dt_weight.shape[2], 1, True, False, 0,
        x.data_ptr(), 0, proj.data_ptr(), dt_weight.data_ptr(), dt_bias.data_ptr(), A.data_ptr(), D.data_ptr(),
        *(0,) * 16,
        # StateFusionArgs: h, dh and everything of the readout but u are absent; then the dilations
        is_double, batch, height, width, channels, len(dilations), stacked.data_ptr(), alphas.data_ptr(),
        *ABSENT, *typed(y), *ABSENT, 0, 0, 0, 0, *typed(x), 0, 0, *ABSENT, *dilations,
    )
    # fmt: on
    native.call("scan_fusion_forward", struct.pack(f"{len(values)}q", *values))
    return y
