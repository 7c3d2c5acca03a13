"""Bias and activation of a matrix product on the compiled core (csrc/kernels/bias_act.cpp): contiguous rows, no
autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.native import ABSENT, ACTIVATIONS, typed
from vssm.ops.tensors import core_dtype, dense


def _sizes(x: Tensor, dtype: torch.dtype, bias: Tensor | None) -> tuple[int, int, int]:
    if bias is None and x.dim() > 0:  # rows do not matter: long ones cost least
        channels = min(max(x.numel(), 1), 4096)
        if x.numel() % channels == 0:
            return dtype is torch.float64, x.numel() // channels, channels
    channels = max(x.shape[-1], 1)
    return dtype is torch.float64, x.numel() // channels, channels


def forward(x: Tensor, bias: Tensor | None, act: str, out: Tensor | None = None) -> Tensor:
    """act(x + bias), x (..., C), bias (C,) or None. `out` may be x itself."""
    dtype = core_dtype(x, bias)
    x, bias = x.contiguous(), dense(bias, dtype)
    y = torch.empty_like(x) if out is None else out
    sizes = _sizes(x, dtype, bias)
    native.call("bias_act_forward", *sizes, ACTIVATIONS[act], bias, *typed(x), *typed(y), *ABSENT, 0)
    return y


def backward(
    gy: Tensor, x: Tensor, bias: Tensor | None, act: str, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """dx and dbias. `out` receives dx and may be gy itself."""
    dtype = core_dtype(gy, x, bias)
    gy, x, bias = gy.contiguous(), x.contiguous(), dense(bias, dtype)
    dx, dbias = torch.empty_like(x) if out is None else out, None if bias is None else torch.empty_like(bias)
    sizes = _sizes(x, dtype, bias)
    native.call("bias_act_backward", *sizes, ACTIVATIONS[act], bias, *typed(x), *typed(gy), *typed(dx), dbias)
    return dx, dbias
