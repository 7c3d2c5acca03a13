"""Registration of `vssm::state_gather`: schema, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import as_inputs, call, differentiable
from vssm.ops.state_gather import core, torch_path

dispatch.register("state_gather", core=None, triton=None, torch=None, reference=None)

# Multiply-adds per state and place: four neighbours, each weighted and added.
_PER_PLACE = 8


def _implementation(h, offsets, weights, path):
    chosen = dispatch.choose("state_gather", h, path, offsets, weights)
    if chosen == "triton":
        from vssm.ops.state_gather import triton  # importing it takes a second, so it waits for the first call

        return triton
    return core if chosen == "core" else torch_path


def _gather(h, offsets, weights, path):
    return _implementation(h, offsets, weights, path).forward(h, offsets, weights)


def _empty(h, dtype):
    B, S, C, N, H, W = h.shape
    return h.new_empty((B, S, N, H, W, C), dtype=dtype).permute(0, 1, 5, 2, 3, 4)


def _gather_fake(h, offsets, weights, path):
    return _empty(h, at_least_float32(h, offsets, weights))


def _gather_backward(gy, h, offsets, weights, path):
    return as_inputs(
        (h, offsets, weights), _implementation(h, offsets, weights, path).backward(gy, h, offsets, weights)
    )


def _gather_backward_fake(gy, h, offsets, weights, path):
    return [_empty(h, h.dtype), offsets.new_empty(offsets.shape), weights.new_empty(weights.shape)]


def _setup(ctx, inputs, output):
    h, offsets, weights, ctx.path = inputs
    ctx.save_for_backward(h, offsets, weights)


def _autograd(ctx, gy):
    return (*call(torch.ops.vssm.state_gather_backward.default, gy, *ctx.saved_tensors, ctx.path), None)


_OPTIONS = "Tensor h, Tensor offsets, Tensor weights, str path"
library.define(f"state_gather({_OPTIONS}) -> Tensor", _gather, _gather_fake)
library.define(f"state_gather_backward(Tensor gy, {_OPTIONS}) -> Tensor[]", _gather_backward, _gather_backward_fake)
differentiable("state_gather", _autograd, _setup)


@register_flop_formula(torch.ops.vssm.state_gather)
def _formula(h_shape, offsets_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * _PER_PLACE * offsets_shape[2] * torch.Size(h_shape).numel()


@register_flop_formula(torch.ops.vssm.state_gather_backward)
def _backward_formula(gy_shape, h_shape, offsets_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * _PER_PLACE * offsets_shape[2] * torch.Size(h_shape).numel()
