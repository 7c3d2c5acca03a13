"""Registration of `vssm::depthwise_conv3x3`: schema, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.depthwise import core, torch_path
from vssm.ops.pointwise import as_inputs, call, differentiable, empty_map

dispatch.register("depthwise_conv3x3", core=None, triton=None, torch=None, reference=None)


def _implementation(path, x, weight, bias):
    chosen = dispatch.choose("depthwise_conv3x3", x, path, weight, bias)
    if chosen == "triton":
        from vssm.ops.depthwise import triton  # importing it takes a second, so it waits for the first call

        return triton
    return core if chosen == "core" else torch_path


def _conv(x, weight, bias, act, residual, path):
    return _implementation(path, x, weight, bias).forward(x, weight, bias, act, residual)


def _conv_fake(x, weight, bias, act, residual, path):
    return empty_map(x)


def _conv_backward(gy, x, weight, bias, act, residual, path):
    implementation = _implementation(path, x, weight, bias)
    return as_inputs((x, weight, bias), implementation.backward(gy, x, weight, bias, act, residual))


def _conv_backward_fake(gy, x, weight, bias, act, residual, path):
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    return [empty_map(x), weight.new_empty(weight.shape), dbias]


def _setup(ctx, inputs, output):
    x, weight, bias, ctx.act, ctx.residual, ctx.path = inputs
    ctx.save_for_backward(x, weight, bias)


def _autograd(ctx, gy):
    grads = call(
        torch.ops.vssm.depthwise_conv3x3_backward.default, gy, *ctx.saved_tensors, ctx.act, ctx.residual, ctx.path
    )
    return (*library.empty_like_or_none(grads), None, None, None)


_OPTIONS = "Tensor x, Tensor weight, Tensor? bias, str act, bool residual, str path"
library.define(f"depthwise_conv3x3({_OPTIONS}) -> Tensor", _conv, _conv_fake)
library.define(f"depthwise_conv3x3_backward(Tensor gy, {_OPTIONS}) -> Tensor[]", _conv_backward, _conv_backward_fake)
differentiable("depthwise_conv3x3", _autograd, _setup)


@register_flop_formula(torch.ops.vssm.depthwise_conv3x3)
def _formula(x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 9 * torch.Size(x_shape).numel()


@register_flop_formula(torch.ops.vssm.depthwise_conv3x3_backward)
def _backward_formula(gy_shape, x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * 9 * torch.Size(x_shape).numel()
