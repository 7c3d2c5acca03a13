"""State fusion on the compiled core (csrc/kernels/state_fusion.cpp): channels-last maps, no autograd."""

import struct

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.pointwise import ABSENT, address, channels_last, compute_dtype, dense, empty_map, typed

# struct StateFusionArgs: is_double, batch, height, width, channels, count, kernels, alphas, then (data, type) of h, y,
# dh, then dkernels, dalphas, C, D, (data, type) of u, dC, dD, (data, type) of du; then the dilations.
_NO_READOUT = (0, 0, *ABSENT, 0, 0, *ABSENT)


def _sizes(h: Tensor, dtype: torch.dtype, dilations: list[int]) -> tuple[int, ...]:
    batch, channels, height, width = h.shape
    return dtype is torch.float64, batch, height, width, channels, len(dilations)


def _call(name: str, *values: int) -> None:
    native.call(name, struct.pack(f"{len(values)}q", *values))


def forward(h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]) -> Tensor:
    """See the public function; at least one dilation, kernels (n, C, 1, 3, 3)."""
    dtype = compute_dtype(h, kernels, alphas)
    h, kernels, alphas = channels_last(h), dense(kernels, dtype), dense(alphas, dtype)
    y = empty_map(h)
    # fmt: off
    _call(
        "state_fusion_forward", *_sizes(h, dtype, dilations), address(kernels), address(alphas),
        *typed(h), *typed(y), *ABSENT, 0, 0, *_NO_READOUT, *dilations,
    )
    # fmt: on
    return y


def backward(
    g: Tensor, h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """dh (channels_last memory), dkernels, dalphas."""
    dtype = compute_dtype(g, h, kernels, alphas)
    g, h, kernels, alphas = channels_last(g), channels_last(h), dense(kernels, dtype), dense(alphas, dtype)
    dh, dkernels, dalphas = empty_map(h), torch.empty_like(kernels), torch.empty_like(alphas)
    # fmt: off
    _call(
        "state_fusion_backward", *_sizes(h, dtype, dilations), address(kernels), address(alphas),
        *typed(h), *typed(g), *typed(dh), dkernels.data_ptr(), dalphas.data_ptr(), *_NO_READOUT, *dilations,
    )
    # fmt: on
    return dh, dkernels, dalphas
