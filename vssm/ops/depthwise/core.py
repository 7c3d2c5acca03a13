"""The depthwise 3x3 convolution on the compiled core (csrc/kernels/depthwise.cpp): channels-last maps, no autograd."""

import struct

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.pointwise import ABSENT, address, channels_last, compute_dtype, dense, empty_map, typed

# struct DepthwiseArgs: is_double, batch, height, width, channels, act, residual, weight, bias, then (data, type) of x,
# y, dx, then dweight, dbias.
_ARGUMENTS = struct.Struct("17q")
_ACTS = {"silu": 1, "none": 3}


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool) -> Tensor:
    """See the public function."""
    dtype = compute_dtype(x, weight, bias)
    batch, channels, height, width = x.shape
    x, weight, bias = channels_last(x), dense(weight, dtype), dense(bias, dtype)
    y = empty_map(x)
    # fmt: off
    native.call("depthwise_forward", _ARGUMENTS.pack(
        dtype is torch.float64, batch, height, width, channels, _ACTS[act], residual, address(weight), address(bias),
        *typed(x), *typed(y), *ABSENT, 0, 0,
    ))
    # fmt: on
    return y


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (channels_last memory), dweight, dbias."""
    dtype = compute_dtype(gy, x, weight, bias)
    batch, channels, height, width = x.shape
    gy, x, weight, bias = channels_last(gy), channels_last(x), dense(weight, dtype), dense(bias, dtype)
    dx, dweight = empty_map(x), torch.empty((9, channels), dtype=dtype)
    dbias = None if bias is None else torch.empty_like(bias)
    # fmt: off
    native.call("depthwise_backward", _ARGUMENTS.pack(
        dtype is torch.float64, batch, height, width, channels, _ACTS[act], residual, address(weight), address(bias),
        *typed(x), *typed(gy), *typed(dx), dweight.data_ptr(), address(dbias),
    ))
    # fmt: on
    return dx, dweight.t().contiguous().view(channels, 1, 3, 3), dbias
