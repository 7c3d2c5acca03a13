"""Bias and activation on the compiled core (csrc/kernels/bias_act.cpp): one call on contiguous rows, no autograd."""

import struct

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.pointwise import ABSENT, address, compute_dtype, dense, typed

# struct BiasActArgs: is_double, rows, channels, act, bias, then (data, type) of x, y, dx, then dbias.
_ARGUMENTS = struct.Struct("12q")
_ACTS = {"gelu": 0, "silu": 1, "relu": 2, "none": 3}


def _sizes(x: Tensor, dtype: torch.dtype, bias: Tensor | None) -> tuple[int, int, int]:
    if bias is None and x.dim() > 0:  # rows do not matter: long ones cost least
        channels = min(max(x.numel(), 1), 4096)
        if x.numel() % channels == 0:
            return dtype is torch.float64, x.numel() // channels, channels
    channels = max(x.shape[-1], 1)
    return dtype is torch.float64, x.numel() // channels, channels


def forward(x: Tensor, bias: Tensor | None, act: str, out: Tensor | None = None) -> Tensor:
    """See the public function. `out` may be x itself."""
    dtype = compute_dtype(x, bias)
    x, bias = x.contiguous(), dense(bias, dtype)
    y = torch.empty_like(x) if out is None else out
    arguments = _ARGUMENTS.pack(*_sizes(x, dtype, bias), _ACTS[act], address(bias), *typed(x), *typed(y), *ABSENT, 0)
    native.call("bias_act_forward", arguments)
    return y


def backward(
    gy: Tensor, x: Tensor, bias: Tensor | None, act: str, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """dx and dbias. `out` receives dx and may be gy itself."""
    dtype = compute_dtype(gy, x, bias)
    gy, x, bias = gy.contiguous(), x.contiguous(), dense(bias, dtype)
    dx, dbias = torch.empty_like(x) if out is None else out, None if bias is None else torch.empty_like(bias)
    arguments = _ARGUMENTS.pack(
        *_sizes(x, dtype, bias), _ACTS[act], address(bias), *typed(x), *typed(gy), *typed(dx), address(dbias)
    )
    native.call("bias_act_backward", arguments)
    return dx, dbias
