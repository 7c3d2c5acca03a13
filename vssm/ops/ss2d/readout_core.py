"""The readout of states on the compiled core (csrc/kernels/readout.cpp): no autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.tensors import MAP, STATES, channels_last, core_dtype, dense, empty, laid_out


def _sizes(h: Tensor) -> tuple[int, ...]:
    """The head of struct ReadoutArgs."""
    batch, K, channels, N, height, width = h.shape
    return h.dtype is torch.float64, batch, K * N, height * width, channels


def forward(h: Tensor, C: Tensor, x: Tensor | None, skip: Tensor | None) -> Tensor:
    """y (B, E, H, W) like h, in channels_last memory."""
    dtype, result = core_dtype(h), h.dtype
    h, C, skip = laid_out(h.to(dtype), STATES), dense(C, dtype), dense(skip, dtype)
    batch, _, channels, _, height, width = h.shape
    y = empty(h, (batch, channels, height, width), MAP, dtype)
    x = None if x is None else channels_last(x.to(dtype))
    native.call("readout_forward", *_sizes(h), h, C, x, skip, y, 0, 0)
    return y.to(result)


def backward(g: Tensor, h: Tensor, C: Tensor, x: Tensor | None, skip: Tensor | None) -> tuple[Tensor | None, ...]:
    """dh, dC, dx, dskip."""
    dtype = core_dtype(h)
    h, C, g = laid_out(h.to(dtype), STATES), dense(C, dtype), channels_last(g.to(dtype))
    dh, dC = torch.empty_like(h), torch.empty_like(C)
    native.call("readout_backward", *_sizes(h), h, C, 0, 0, g, dh, dC)
    if x is None or skip is None:
        return dh, dC, None, None
    return dh, dC, g * skip.to(g.dtype)[:, None, None], (g * x.to(g.dtype)).sum((0, 2, 3))
