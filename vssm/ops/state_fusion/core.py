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


def readout_forward(
    h: Tensor, kernels: Tensor, alphas: Tensor, C: Tensor, u: Tensor | None, D: Tensor | None, dilations: list[int]
) -> Tensor:
    """C * fused + D * u, of the compute dtype."""
    dtype = compute_dtype(h, kernels, alphas, C, u, D)
    h, kernels, alphas = channels_last(h), dense(kernels, dtype), dense(alphas, dtype)
    C, D, u = dense(C, dtype), dense(D, dtype), None if u is None else channels_last(u)
    y = empty_map(h, dtype)
    # fmt: off
    _call(
        "state_fusion_forward", *_sizes(h, dtype, dilations), address(kernels), address(alphas),
        *typed(h), *typed(y), *ABSENT, 0, 0, address(C), address(D), *typed(u), 0, 0, *ABSENT, *dilations,
    )
    # fmt: on
    return y


def readout_backward(
    g: Tensor,
    h: Tensor,
    kernels: Tensor,
    alphas: Tensor,
    C: Tensor,
    u: Tensor | None,
    D: Tensor | None,
    dilations: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dh, dkernels, dalphas, dC, du, dD; the maps in channels_last memory."""
    dtype = compute_dtype(g, h, kernels, alphas, C, u, D)
    g, h, kernels, alphas = channels_last(g), channels_last(h), dense(kernels, dtype), dense(alphas, dtype)
    C, D, u = dense(C, dtype), dense(D, dtype), None if u is None or D is None else channels_last(u)
    dh, dkernels, dalphas, dC = empty_map(h), torch.empty_like(kernels), torch.empty_like(alphas), torch.empty_like(C)
    du, dD = None if u is None else empty_map(u), None if D is None else torch.empty_like(D)
    # fmt: off
    _call(
        "state_fusion_backward", *_sizes(h, dtype, dilations), address(kernels), address(alphas),
        *typed(h), *typed(g), *typed(dh), dkernels.data_ptr(), dalphas.data_ptr(),
        address(C), address(D), *typed(u), address(dC), address(dD), *typed(du), *dilations,
    )
    # fmt: on
    return dh, dkernels, dalphas, dC, du, dD
