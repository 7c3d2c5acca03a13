"""The depthwise 3x3 convolution on the compiled core (csrc/kernels/depthwise.cpp): channels-last maps, no autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.native import ABSENT, ACTIVATIONS, typed
from vssm.ops.tensors import channels_last, core_dtype, dense, empty_map, row


def _head(dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool) -> tuple:
    """The fields of struct DepthwiseArgs before the maps."""
    batch, channels, height, width = x.shape
    sizes = dtype is torch.float64, batch, height, width, channels
    return *sizes, ACTIVATIONS[act], residual, *typed(row(weight)), *typed(row(bias))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool) -> Tensor:
    """See the public function."""
    dtype = core_dtype(x, weight, bias)
    x, y = channels_last(x), empty_map(x)
    head = _head(dtype, x, weight, bias, act, residual)
    native.call("depthwise_forward", *head, *typed(x), *typed(y), *ABSENT, 0, 0)
    return y


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (channels_last memory), dweight, dbias."""
    dtype = core_dtype(gy, x, weight, bias)
    channels = x.shape[1]
    gy, x, weight, bias = channels_last(gy), channels_last(x), dense(weight, dtype), dense(bias, dtype)
    dx, dweight = empty_map(x), torch.empty((9, channels), dtype=dtype)
    dbias = None if bias is None else torch.empty_like(bias)
    head = _head(dtype, x, weight, bias, act, residual)
    native.call("depthwise_backward", *head, *typed(x), *typed(gy), *typed(dx), dweight, dbias)
    return dx, dweight.t().contiguous().view(channels, 1, 3, 3), dbias
