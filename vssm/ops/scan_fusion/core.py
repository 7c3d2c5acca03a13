"""Scan, fusion and readout in one pass of the compiled core (csrc/kernels/scan_fusion.cpp): no autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.native import ABSENT, typed
from vssm.ops.routes import RASTER, Route
from vssm.ops.state_fusion.fold import reaching
from vssm.ops.tensors import channels_last, core_dtype, dense, empty_map


def fits(dt_weight: Tensor, A: Tensor, kernels: list[Tensor], routes: tuple[Route, ...]) -> bool:
    """Whether the kernel takes these arguments: a raster route, one state, a low-rank dt, kernels of 3x3."""
    return routes == RASTER and A.shape[1] == 1 and dt_weight.shape[2] > 0 and {k.shape[-1] for k in kernels} == {3}


def forward(x, proj, dt_weight, dt_bias, A, D, kernels, alphas, dilations) -> Tensor:
    """y (B, C, H, W) of the compute dtype; proj (B, H, W, R+2), kernels (n, C, 1, 3, 3)."""
    dtype = core_dtype(x, proj, dt_weight, dt_bias, A, D, kernels, alphas)
    batch, channels, height, width = x.shape
    x = channels_last(x.to(dtype))
    weights = [dense(t, dtype) for t in (proj, dt_weight, dt_bias, A, D)]
    is_double, y = dtype is torch.float64, empty_map(x)
    # Struct ScanFusionArgs: those of a scan, whose last 16 tensors are absent, and those of a fusion, which has no h of
    # its own and of the readout only u.
    scan = (is_double, batch, 1, channels, height * width, dt_weight.shape[2], 1, True, False, 0)
    fusion = (is_double, batch, height, width, channels, len(dilations), dense(kernels, dtype), dense(alphas, dtype))
    maps = (*ABSENT, *typed(y), *ABSENT, 0, 0, 0, 0, *typed(x), 0, 0, *ABSENT)
    fields = (*scan, x, 0, *weights, *(0,) * 16, *fusion, *maps, *reaching(x, dilations))
    native.call("scan_fusion_forward", *fields)
    return y
