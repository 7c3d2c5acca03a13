"""The causal convolution on the compiled core (csrc/kernels/causal_conv.cpp): channels contiguous, no autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.native import ABSENT, ACTIVATIONS, typed
from vssm.ops.tensors import core_dtype, dense

WIDTHS = (2, 3, 4)


def _head(dtype: torch.dtype, x: Tensor, taps: Tensor, bias: Tensor | None, act: str, reverse: bool) -> tuple:
    """The fields of struct CausalConvArgs before the sequences; x (B, L, C), taps (W, C)."""
    return dtype is torch.float64, *x.shape, len(taps), ACTIVATIONS[act], reverse, taps, bias


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool) -> Tensor:
    """See the public function; the width is one of WIDTHS."""
    dtype = core_dtype(x, weight, bias)
    x = x.mT.contiguous()
    y = torch.empty_like(x)
    head = _head(dtype, x, dense(weight.mT, dtype), dense(bias, dtype), act, reverse)
    native.call("causal_conv_forward", *head, *typed(x), *typed(y), *ABSENT, 0, 0)
    return y.mT


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (memory of (B, L, C)), dweight, dbias."""
    dtype = core_dtype(gy, x, weight, bias)
    gy, x, taps, bias = gy.mT.contiguous(), x.mT.contiguous(), dense(weight.mT, dtype), dense(bias, dtype)
    dx, dtaps = torch.empty_like(x), torch.empty_like(taps)
    dbias = None if bias is None else torch.empty_like(bias)
    head = _head(dtype, x, taps, bias, act, reverse)
    native.call("causal_conv_backward", *head, *typed(x), *typed(gy), *typed(dx), dtaps, dbias)
    return dx.mT, dtaps.mT.contiguous(), dbias
