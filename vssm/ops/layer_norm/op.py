"""Registration of `vssm::layer_norm` and `vssm::add_layer_norm`: schemas, shapes, autograd, FLOPs."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.layer_norm import core, torch_path
from vssm.ops.pointwise import as_inputs, call, differentiable, result_dtype

dispatch.register("layer_norm", core=None, triton=None, torch=None, reference=None)
dispatch.register("add_layer_norm", core=None, triton=None, torch=None, reference=None)

# Multiply-adds per element, the count of fvcore for a normalisation with weight and bias.
_PER_ELEMENT = 5


def _implementation(op: str, path: str, x: Tensor, *others: Tensor | None):
    chosen = dispatch.choose(op, x, path, *others)
    if chosen == "triton":
        from vssm.ops.layer_norm import triton  # importing it takes a second, so it waits for the first call

        return triton
    return core if chosen == "core" else torch_path


def _empty_like(*inputs: Tensor) -> list[Tensor]:
    return [
        inputs[0].new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in inputs
    ]


# ---- layer_norm ----


def _layer_norm(x, weight, bias, gate, eps, path):
    implementation = _implementation("layer_norm", path, x, weight, bias, gate)
    return implementation.forward(x, weight, bias, gate, eps)


def _layer_norm_fake(x, weight, bias, gate, eps, path):
    return x.new_empty(x.shape, dtype=result_dtype(x, weight, bias, gate))


def _layer_norm_backward(gy, x, weight, bias, gate, eps, path):
    implementation = _implementation("layer_norm", path, x, weight, bias, gate)
    return as_inputs((x, weight, bias, gate), implementation.backward(gy, x, weight, bias, gate, eps))


def _layer_norm_backward_fake(gy, x, weight, bias, gate, eps, path):
    return _empty_like(x, weight, bias, gate)


def _layer_norm_setup(ctx, inputs, output):
    x, weight, bias, gate, ctx.eps, ctx.path = inputs
    ctx.save_for_backward(x, weight, bias, gate)


def _layer_norm_autograd(ctx, gy):
    grads = call(torch.ops.vssm.layer_norm_backward.default, gy, *ctx.saved_tensors, ctx.eps, ctx.path)
    return (*library.empty_like_or_none(grads), None, None)


library.define(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? gate, float eps, str path) -> Tensor",
    _layer_norm,
    _layer_norm_fake,
)
library.define(
    "layer_norm_backward(Tensor gy, Tensor x, Tensor? weight, Tensor? bias, Tensor? gate, float eps, str path)"
    " -> Tensor[]",
    _layer_norm_backward,
    _layer_norm_backward_fake,
)
differentiable("layer_norm", _layer_norm_autograd, _layer_norm_setup)


# ---- add_layer_norm ----


def _add_layer_norm(x, branch, weight, bias, eps, path):
    implementation = _implementation("add_layer_norm", path, x, branch, weight, bias)
    return implementation.add_forward(x, branch, weight, bias, eps)


def _add_layer_norm_fake(x, branch, weight, bias, eps, path):
    dtype = result_dtype(x, branch)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape, dtype=result_dtype(x, branch, weight, bias))


def _add_layer_norm_backward(gsum, gy, total, weight, bias, eps, path):
    implementation = _implementation("add_layer_norm", path, total, weight, bias)
    grads = implementation.add_backward(gsum, gy, total, weight, bias, eps)
    return as_inputs((total, weight, bias), grads)


def _add_layer_norm_backward_fake(gsum, gy, total, weight, bias, eps, path):
    return _empty_like(total, weight, bias)


def _add_layer_norm_setup(ctx, inputs, output):
    x, branch, weight, bias, ctx.eps, ctx.path = inputs
    ctx.dtypes = x.dtype, branch.dtype
    ctx.save_for_backward(output[0], weight, bias)
    ctx.set_materialize_grads(False)


def _add_layer_norm_autograd(ctx, gsum, gy):
    total, weight, bias = ctx.saved_tensors
    if gy is None:  # only the sum was used
        dsum, dweight, dbias = gsum, None, None
    else:
        grads = call(torch.ops.vssm.add_layer_norm_backward.default, gsum, gy, total, weight, bias, ctx.eps, ctx.path)
        dsum, dweight, dbias = library.empty_like_or_none(grads)
    dx, dbranch = (None if dsum is None else dsum.to(dtype) for dtype in ctx.dtypes)
    return dx, dbranch, dweight, dbias, None, None


library.define(
    "add_layer_norm(Tensor x, Tensor branch, Tensor? weight, Tensor? bias, float eps, str path) -> (Tensor, Tensor)",
    _add_layer_norm,
    _add_layer_norm_fake,
)
library.define(
    "add_layer_norm_backward(Tensor? gsum, Tensor gy, Tensor total, Tensor? weight, Tensor? bias, float eps, str path)"
    " -> Tensor[]",
    _add_layer_norm_backward,
    _add_layer_norm_backward_fake,
)
differentiable("add_layer_norm", _add_layer_norm_autograd, _add_layer_norm_setup)


# ---- FLOPs: two per multiply-add; torch's own counter has no entry for normalisations ----


def _flops(shape) -> int:
    return 2 * _PER_ELEMENT * torch.Size(shape).numel()


@register_flop_formula([torch.ops.vssm.layer_norm, torch.ops.vssm.add_layer_norm])
def _forward_formula(x_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(x_shape)


@register_flop_formula([torch.ops.vssm.layer_norm_backward, torch.ops.vssm.add_layer_norm_backward])
def _backward_formula(gy_shape, x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * _flops(x_shape)
