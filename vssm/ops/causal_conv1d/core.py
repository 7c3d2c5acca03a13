"""The causal convolution on the compiled core (csrc/kernels/causal_conv.cpp): channels contiguous, no autograd."""

import struct

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.pointwise import ABSENT, address, compute_dtype, dense, typed

WIDTHS = (2, 3, 4)

# struct CausalConvArgs: is_double, batch, length, channels, width, act, reverse, weight, bias, then (data, type) of x,
# y, dx, then dweight, dbias.
_ARGUMENTS = struct.Struct("17q")
_ACTS = {"silu": 1, "none": 3}


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool) -> Tensor:
    """See the public function; the width is one of WIDTHS."""
    dtype = compute_dtype(x, weight, bias)
    (batch, channels, length), width = x.shape, weight.shape[1]
    x, taps, bias = x.mT.contiguous(), dense(weight.mT, dtype), dense(bias, dtype)
    y = torch.empty_like(x)
    # fmt: off
    native.call("causal_conv_forward", _ARGUMENTS.pack(
        dtype is torch.float64, batch, length, channels, width, _ACTS[act], reverse, address(taps), address(bias),
        *typed(x), *typed(y), *ABSENT, 0, 0,
    ))
    # fmt: on
    return y.mT


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (memory of (B, L, C)), dweight, dbias."""
    dtype = compute_dtype(gy, x, weight, bias)
    (batch, channels, length), width = x.shape, weight.shape[1]
    gy, x, taps, bias = gy.mT.contiguous(), x.mT.contiguous(), dense(weight.mT, dtype), dense(bias, dtype)
    dx, dtaps = torch.empty_like(x), torch.empty_like(taps)
    dbias = None if bias is None else torch.empty_like(bias)
    # fmt: off
    native.call("causal_conv_backward", _ARGUMENTS.pack(
        dtype is torch.float64, batch, length, channels, width, _ACTS[act], reverse, address(taps), address(bias),
        *typed(x), *typed(gy), *typed(dx), dtaps.data_ptr(), address(dbias),
    ))
    # fmt: on
    return dx.mT, dtaps.mT.contiguous(), dbias
