"""Registration of `vssm::rms_norm`: schema, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.pointwise import as_inputs, call, differentiable, result_dtype
from vssm.ops.rms_norm import core, torch_path

dispatch.register("rms_norm", core=None, triton=None, torch=None, reference=None)

# Multiply-adds per element: the count of a layer norm with weight and bias, less the mean and the bias.
_PER_ELEMENT = 3


def _implementation(x, weight, path):
    chosen = dispatch.choose("rms_norm", x, path, weight)
    if chosen == "triton":
        from vssm.ops.rms_norm import triton  # importing it takes a second, so it waits for the first call

        return triton
    return core if chosen == "core" else torch_path


def _norm(x, weight, eps, path):
    return _implementation(x, weight, path).forward(x, weight, eps)


def _norm_fake(x, weight, eps, path):
    return x.new_empty(x.shape, dtype=result_dtype(x, weight))


def _norm_backward(gy, x, weight, eps, path):
    return as_inputs((x, weight), _implementation(x, weight, path).backward(gy, x, weight, eps))


def _norm_backward_fake(gy, x, weight, eps, path):
    dweight = x.new_empty(0) if weight is None else torch.empty_like(weight)
    return [torch.empty_like(x, memory_format=torch.contiguous_format), dweight]


def _setup(ctx, inputs, output):
    x, weight, ctx.eps, ctx.path = inputs
    ctx.save_for_backward(x, weight)


def _autograd(ctx, gy):
    grads = call(torch.ops.vssm.rms_norm_backward.default, gy, *ctx.saved_tensors, ctx.eps, ctx.path)
    return (*library.empty_like_or_none(grads), None, None)


_OPTIONS = "Tensor x, Tensor? weight, float eps, str path"
library.define(f"rms_norm({_OPTIONS}) -> Tensor", _norm, _norm_fake)
library.define(f"rms_norm_backward(Tensor gy, {_OPTIONS}) -> Tensor[]", _norm_backward, _norm_backward_fake)
differentiable("rms_norm", _autograd, _setup)


@register_flop_formula(torch.ops.vssm.rms_norm)
def _formula(x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * _PER_ELEMENT * torch.Size(x_shape).numel()


@register_flop_formula(torch.ops.vssm.rms_norm_backward)
def _backward_formula(gy_shape, x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * _PER_ELEMENT * torch.Size(x_shape).numel()
