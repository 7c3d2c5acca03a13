"""Blending of states on the compiled core (csrc/kernels/state_gather.cpp): channels contiguous, no autograd."""

import struct

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import dense

# struct StateGatherArgs: is_double, maps, states, height, width, channels, count, h, offsets, weights, y, dh, doffsets,
# dweights.
_ARGUMENTS = struct.Struct("14q")


def _states(h: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, S, N, H, W, C), contiguous."""
    return dense(h.permute(0, 1, 3, 4, 5, 2), dtype)


def _arguments(h: Tensor, weights: Tensor, *tensors: Tensor | None) -> bytes:
    B, S, N, H, W, C = h.shape
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    return _ARGUMENTS.pack(h.dtype is torch.float64, B * S, N, H, W, C, weights.shape[2], *addresses)


def forward(h: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """See the public function."""
    dtype = at_least_float32(h, offsets, weights)
    h, offsets, weights = _states(h, dtype), dense(offsets, dtype), dense(weights, dtype)
    y = torch.empty_like(h)
    native.call("state_gather_forward", _arguments(h, weights, h, offsets, weights, y, None, None, None))
    return y.permute(0, 1, 5, 2, 3, 4)


def backward(gy: Tensor, h: Tensor, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dh, doffsets, dweights in the compute dtype."""
    dtype = at_least_float32(h, offsets, weights)
    gy, h, offsets, weights = _states(gy, dtype), _states(h, dtype), dense(offsets, dtype), dense(weights, dtype)
    dh, doffsets, dweights = torch.empty_like(h), torch.empty_like(offsets), torch.empty_like(weights)
    native.call("state_gather_backward", _arguments(h, weights, h, offsets, weights, gy, dh, doffsets, dweights))
    return dh.permute(0, 1, 5, 2, 3, 4), doffsets, dweights
