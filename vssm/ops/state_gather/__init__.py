"""States sampled at learned offsets and blended, the operator of Mamba-Adaptor's Adaptor-T.

    y(p) = sum_k weight_k(p) h(p + offset_k(p))        bilinear between pixels, zero outside of the map

Mamba-Adaptor (arXiv 2505.12685), section on Adaptor-T: K learned points per state and coefficients that sum to 1. That
the points are continuous and two-dimensional is our reading; see docs/differences.md.
"""

import torch
from torch import Tensor

from vssm.ops.checks import floating, same_device
from vssm.ops.operator import Operator
from vssm.ops.state_gather import core, reference
from vssm.ops.state_gather.grid_sample import grid_sampled
from vssm.ops.tensors import STATES

__all__ = ["state_gather"]

_state_gather = Operator(
    "state_gather(Tensor h, Tensor offsets, Tensor weights) -> Tensor",
    shape=lambda h, *_: h.shape,
    reference=reference.state_gather,
    torch_path=grid_sampled,
    core=core,
    triton="vssm.ops.state_gather.triton",
    result="at least float32",
    order=STATES,
    gradient_orders={"h": STATES},
    # A bilinear sample is 4 multiply-adds, as an upsampling counts them, and its weight one more.
    macs=lambda h, offsets, weights: {"sampling": 5 * torch.Size(h).numel() * weights[2]},
)


def state_gather(h: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Replace every state by a weighted sum of states at K points around it.

    Args:
        h: (B, S, C, N, H, W), the states of S sequences on the image grid, as `ss2d_states` returns them (its memory,
            (B, S, N, H, W, C), is the fast one).
        offsets: (B, S, K, 2, H, W), in pixels: rows down, then columns to the right.
        weights: (B, S, K, H, W).

    Returns:
        Like h in shape, at least float32, in the memory of (B, S, N, H, W, C).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; the message names the argument.

    All channels and states of a pixel share its points. At a point exactly on a pixel the gradient of the offset is
    that of the cell below and to the right. Cost: 8 K B S C N H W multiply-adds.
    """
    if torch.jit.is_scripting():
        return torch.ops.vssm.state_gather(h, offsets, weights, "")
    else:
        _check(h, offsets, weights)
        return _state_gather(h, offsets, weights)


def _check(h: Tensor, offsets: Tensor, weights: Tensor) -> None:
    if h.dim() != 6 or 0 in h.shape[1:]:
        raise ValueError(f"h must be (B, S, C, N, H, W) without an empty dimension, got {tuple(h.shape)}")
    B, S, _, _, H, W = h.shape
    if weights.dim() != 5 or (*weights.shape[:2], *weights.shape[3:]) != (B, S, H, W) or weights.shape[2] == 0:
        raise ValueError(f"weights must be (B, S, K, H, W) = ({B}, {S}, K, {H}, {W}), got {tuple(weights.shape)}")
    expected = (B, S, weights.shape[2], 2, H, W)
    if offsets.shape != expected:
        raise ValueError(f"offsets must be (B, S, K, 2, H, W) = {expected}, got {tuple(offsets.shape)}")
    floating(h=h, offsets=offsets, weights=weights)
    same_device(h=h, offsets=offsets, weights=weights)
