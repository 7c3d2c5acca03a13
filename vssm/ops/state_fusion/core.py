"""State fusion on the compiled core (csrc/kernels/state_fusion.cpp): channels-last maps, 3x3 kernels, no autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.native import ABSENT, typed
from vssm.ops.state_fusion.fold import reaching
from vssm.ops.tensors import channels_last, core_dtype, dense, empty_map


def _map(x: Tensor | None) -> Tensor | None:
    return None if x is None else channels_last(x)


def forward(h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]) -> Tensor:
    """See the public function; at least one dilation, kernels (n, C, 1, 3, 3)."""
    return _forward(core_dtype(h, kernels, alphas), empty_map(h), h, kernels, alphas, None, None, None, dilations)


def readout_forward(h, kernels, alphas, C, u, D, dilations) -> Tensor:
    """C * fused + D * u, of the compute dtype."""
    dtype = core_dtype(h, kernels, alphas, C, u, D)
    return _forward(dtype, empty_map(h, dtype), h, kernels, alphas, C, u, D, dilations)


def _forward(dtype: torch.dtype, y: Tensor, h, kernels, alphas, C, u, D, dilations) -> Tensor:
    batch, channels, height, width = h.shape
    h, u = channels_last(h), _map(u)
    kernels, alphas, C, D = (dense(t, dtype) for t in (kernels, alphas, C, D))
    sizes = (dtype is torch.float64, batch, height, width, channels, len(dilations))
    readout = (C, D, *typed(u), 0, 0, *ABSENT)
    fields = (*sizes, kernels, alphas, *typed(h), *typed(y), *ABSENT, 0, 0, *readout, *reaching(h, dilations))
    native.call("state_fusion_forward", *fields)
    return y


def backward(g, h, kernels, alphas, dilations) -> tuple[Tensor | None, ...]:
    """dh (channels_last memory), dkernels, dalphas."""
    return readout_backward(g, h, kernels, alphas, None, None, None, dilations)[:3]


def readout_backward(g, h, kernels, alphas, C, u, D, dilations) -> tuple[Tensor | None, ...]:
    """dh, dkernels, dalphas, dC, du, dD; the maps in channels_last memory."""
    dtype = core_dtype(g, h, kernels, alphas, C, u, D)
    batch, channels, height, width = h.shape
    g, h, u = channels_last(g), channels_last(h), _map(u)
    kernels, alphas, C, D = (dense(t, dtype) for t in (kernels, alphas, C, D))
    dkernels, dalphas, dC, dD = (None if t is None else torch.empty_like(t) for t in (kernels, alphas, C, D))
    dh, du = empty_map(h), None if u is None else empty_map(u)
    sizes = (dtype is torch.float64, batch, height, width, channels, len(dilations))
    maps = (*typed(h), *typed(g), *typed(dh), dkernels, dalphas)
    readout = (C, D, *typed(u), dC, dD, *typed(du))
    native.call("state_fusion_backward", *sizes, kernels, alphas, *maps, *readout, *reaching(h, dilations))
    return dh, dkernels, dalphas, dC, du, dD
