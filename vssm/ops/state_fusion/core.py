"""State fusion on the compiled core (csrc/kernels/state_fusion.cpp): channels-last maps, no autograd."""

import struct

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.pointwise import ABSENT, address, channels_last, compute_dtype, dense, empty_map, typed

# struct StateFusionArgs: is_double, batch, height, width, channels, count, alphas, then (data, type) of h, y, dh, then
# dalphas, C, D, (data, type) of u, dC, dD, (data, type) of du; then dilations, kernels and dkernels, count of each.
_NO_READOUT = (0, 0, *ABSENT, 0, 0, *ABSENT)


def _call(
    name: str, dtype, h: Tensor, dilations: list[int], kernels: list[Tensor], dkernels: list[Tensor], *rest
) -> None:
    batch, channels, height, width = h.shape
    lists = (*dilations, *map(address, kernels), *(map(address, dkernels) if dkernels else [0] * len(dilations)))
    values = (dtype is torch.float64, batch, height, width, channels, len(dilations), *rest, *lists)
    native.call(name, struct.pack(f"{len(values)}q", *values))


def forward(h: Tensor, kernels: list[Tensor], alphas: Tensor, dilations: list[int]) -> Tensor:
    """See the public function; at least one dilation."""
    dtype = compute_dtype(h, alphas, *kernels)
    h, wide = channels_last(h), dense(alphas, dtype)
    kernels = [dense(k, dtype) for k in kernels]
    y = empty_map(h)
    _call("state_fusion_forward", dtype, h, dilations, kernels, [],
          address(wide), *typed(h), *typed(y), *ABSENT, 0, *_NO_READOUT)  # fmt: skip
    return y


def backward(
    g: Tensor, h: Tensor, kernels: list[Tensor], alphas: Tensor, dilations: list[int]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """dh (channels_last memory), dkernels, dalphas."""
    dtype = compute_dtype(g, h, alphas, *kernels)
    g, h, wide = channels_last(g), channels_last(h), dense(alphas, dtype)
    kernels = [dense(k, dtype) for k in kernels]
    dh, dalphas, dkernels = empty_map(h), torch.empty_like(wide), [torch.empty_like(k) for k in kernels]
    _call("state_fusion_backward", dtype, h, dilations, kernels, dkernels,
          address(wide), *typed(h), *typed(g), *typed(dh), dalphas.data_ptr(), *_NO_READOUT)  # fmt: skip
    return dh, dkernels, dalphas
