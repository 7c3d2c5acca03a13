"""Blending of states on the compiled core (csrc/kernels/state_gather.cpp): channels contiguous, no autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.tensors import at_least_float32, dense


def _states(h: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, S, N, H, W, C), contiguous."""
    return dense(h.permute(0, 1, 3, 4, 5, 2), dtype)


def _sizes(h: Tensor, weights: Tensor) -> tuple[int, ...]:
    """The head of struct StateGatherArgs."""
    B, S, N, H, W, C = h.shape
    return h.dtype is torch.float64, B * S, N, H, W, C, weights.shape[2]


def forward(h: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """See the public function."""
    dtype = at_least_float32(h, offsets, weights)
    h, offsets, weights = _states(h, dtype), dense(offsets, dtype), dense(weights, dtype)
    y = torch.empty_like(h)
    native.call("state_gather_forward", *_sizes(h, weights), h, offsets, weights, y, 0, 0, 0)
    return y.permute(0, 1, 5, 2, 3, 4)


def backward(gy: Tensor, h: Tensor, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dh, doffsets, dweights in the compute dtype."""
    dtype = at_least_float32(h, offsets, weights)
    gy, h, offsets, weights = _states(gy, dtype), _states(h, dtype), dense(offsets, dtype), dense(weights, dtype)
    dh, doffsets, dweights = torch.empty_like(h), torch.empty_like(offsets), torch.empty_like(weights)
    native.call("state_gather_backward", *_sizes(h, weights), h, offsets, weights, gy, dh, doffsets, dweights)
    return dh.permute(0, 1, 5, 2, 3, 4), doffsets, dweights
