"""Registration of `vssm::causal_conv1d`: schema, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.causal_conv1d import core, torch_path
from vssm.ops.pointwise import as_inputs, call, differentiable

dispatch.register("causal_conv1d", core=None, triton=None, torch=None, reference=None)


def _implementation(x, weight, bias, path):
    """The core has kernels for a few widths; another one is nobody's default, and torch's convolution takes any."""
    chosen = dispatch.choose("causal_conv1d", x, path, weight, bias)
    if chosen == "triton":
        from vssm.ops.causal_conv1d import triton  # importing it takes a second, so it waits for the first call

        return triton
    if chosen == "core" and weight.shape[1] not in core.WIDTHS:
        if path == "core":
            widths = ", ".join(map(str, core.WIDTHS))
            raise dispatch.PathUnavailable(
                f"path 'core' was demanded for causal_conv1d and has kernels of width {widths}, not {weight.shape[1]}; "
                "leave the choice free, or demand 'torch'"
            )
        return torch_path
    return core if chosen == "core" else torch_path


def _conv(x, weight, bias, act, reverse, path):
    return _implementation(x, weight, bias, path).forward(x, weight, bias, act, reverse)


def _empty(x):
    return x.new_empty((x.shape[0], x.shape[2], x.shape[1])).mT


def _conv_fake(x, weight, bias, act, reverse, path):
    return _empty(x)


def _conv_backward(gy, x, weight, bias, act, reverse, path):
    grads = _implementation(x, weight, bias, path).backward(gy, x, weight, bias, act, reverse)
    return as_inputs((x, weight, bias), grads)


def _conv_backward_fake(gy, x, weight, bias, act, reverse, path):
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    return [_empty(x), weight.new_empty(weight.shape), dbias]


def _setup(ctx, inputs, output):
    x, weight, bias, ctx.act, ctx.reverse, ctx.path = inputs
    ctx.save_for_backward(x, weight, bias)


def _autograd(ctx, gy):
    grads = call(torch.ops.vssm.causal_conv1d_backward.default, gy, *ctx.saved_tensors, ctx.act, ctx.reverse, ctx.path)
    return (*library.empty_like_or_none(grads), None, None, None)


_OPTIONS = "Tensor x, Tensor weight, Tensor? bias, str act, bool reverse, str path"
library.define(f"causal_conv1d({_OPTIONS}) -> Tensor", _conv, _conv_fake)
library.define(f"causal_conv1d_backward(Tensor gy, {_OPTIONS}) -> Tensor[]", _conv_backward, _conv_backward_fake)
differentiable("causal_conv1d", _autograd, _setup)


@register_flop_formula(torch.ops.vssm.causal_conv1d)
def _formula(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * weight_shape[1] * torch.Size(x_shape).numel()


@register_flop_formula(torch.ops.vssm.causal_conv1d_backward)
def _backward_formula(gy_shape, x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * weight_shape[1] * torch.Size(x_shape).numel()
