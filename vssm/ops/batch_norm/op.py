"""Registration of `vssm::batch_norm` and `vssm::batch_norm_linear`: schemas, shapes, autograd, FLOPs."""

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.batch_norm import core, reference

dispatch.register("batch_norm", core=None, torch=None, reference=None)

# Multiply-adds per element, the count of fvcore and of torch's own operator in the papers' flags.
_PER_ELEMENT = 5


def _runs_core(x, path) -> bool:
    return dispatch.choose("batch_norm", x, path) == "core"


def _channels(x):
    return x.new_empty(x.shape[-1])


# ---- batch_norm ----


def _batch_norm(x, weight, bias, residual, act, eps, path):
    implementation = core.forward if _runs_core(x, path) else reference.batch_norm
    return implementation(x, weight, bias, residual, act, eps)


def _batch_norm_fake(x, weight, bias, residual, act, eps, path):
    return x.new_empty(x.shape), _channels(x), _channels(x)


def _batch_norm_backward(gy, x, mean, var, weight, bias, act, eps, path):
    return list(core.backward(gy, x, mean, var, weight, bias, act, eps))


def _batch_norm_backward_fake(gy, x, mean, var, weight, bias, act, eps, path):
    return [x.new_empty(x.shape), _channels(x), _channels(x)]


def _batch_norm_setup(ctx, inputs, output):
    x, weight, bias, residual, ctx.act, ctx.eps, ctx.path = inputs
    _, mean, var = output
    ctx.has_residual = residual is not None
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(x, mean, var, weight, bias)


def _batch_norm_autograd(ctx, gy, gmean, gvar):
    dx, dweight, dbias = torch.ops.vssm.batch_norm_backward(gy, *ctx.saved_tensors, ctx.act, ctx.eps, ctx.path)
    return dx, dweight, dbias, gy if ctx.has_residual else None, None, None, None


library.define(
    "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor? residual, str act, float eps, str path)"
    " -> (Tensor, Tensor, Tensor)",
    _batch_norm,
    _batch_norm_fake,
)
library.define(
    "batch_norm_backward(Tensor gy, Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, str act, float eps,"
    " str path) -> Tensor[]",
    _batch_norm_backward,
    _batch_norm_backward_fake,
)
library.differentiable("batch_norm", _batch_norm_autograd, _batch_norm_setup)


# ---- batch_norm_linear ----


def _batch_norm_linear(x, norm_weight, norm_bias, weight, act, eps, path):
    if _runs_core(x, path):
        return core.linear_forward(x, norm_weight, norm_bias, weight, act, eps)
    y, mean, var = reference.batch_norm(x, norm_weight, norm_bias, None, act, eps)
    return F.linear(y, weight), mean, var


def _batch_norm_linear_fake(x, norm_weight, norm_bias, weight, act, eps, path):
    return x.new_empty((*x.shape[:-1], weight.shape[0])), _channels(x), _channels(x)


def _batch_norm_linear_backward(gy, x, mean, var, norm_weight, norm_bias, weight, act, eps, path):
    return list(core.linear_backward(gy, x, mean, var, norm_weight, norm_bias, weight, act, eps))


def _batch_norm_linear_backward_fake(gy, x, mean, var, norm_weight, norm_bias, weight, act, eps, path):
    return [x.new_empty(x.shape), _channels(x), _channels(x), weight.new_empty(weight.shape)]


def _batch_norm_linear_setup(ctx, inputs, output):
    x, norm_weight, norm_bias, weight, ctx.act, ctx.eps, ctx.path = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(x, mean, var, norm_weight, norm_bias, weight)


def _batch_norm_linear_autograd(ctx, gy, gmean, gvar):
    grads = torch.ops.vssm.batch_norm_linear_backward(gy, *ctx.saved_tensors, ctx.act, ctx.eps, ctx.path)
    return (*grads, None, None, None)


library.define(
    "batch_norm_linear(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, str act, float eps, str path)"
    " -> (Tensor, Tensor, Tensor)",
    _batch_norm_linear,
    _batch_norm_linear_fake,
)
library.define(
    "batch_norm_linear_backward(Tensor gy, Tensor x, Tensor mean, Tensor var, Tensor norm_weight, Tensor norm_bias,"
    " Tensor weight, str act, float eps, str path) -> Tensor[]",
    _batch_norm_linear_backward,
    _batch_norm_linear_backward_fake,
)
library.differentiable("batch_norm_linear", _batch_norm_linear_autograd, _batch_norm_linear_setup)


# ---- FLOPs: two per multiply-add; torch's own counter has no entry for normalisations ----


def _norm(x_shape) -> int:
    return 2 * _PER_ELEMENT * torch.Size(x_shape).numel()


def _product(x_shape, weight_shape) -> int:
    return 2 * torch.Size(x_shape).numel() * weight_shape[0]


@register_flop_formula(torch.ops.vssm.batch_norm)
def _formula(x, *args, out_shape=None, **kwargs) -> int:
    return _norm(x)


@register_flop_formula(torch.ops.vssm.batch_norm_backward)
def _backward_formula(gy, x, *args, out_shape=None, **kwargs) -> int:
    return 2 * _norm(x)


@register_flop_formula(torch.ops.vssm.batch_norm_linear)
def _linear_formula(x, norm_weight, norm_bias, weight, *args, out_shape=None, **kwargs) -> int:
    return _norm(x) + _product(x, weight)


@register_flop_formula(torch.ops.vssm.batch_norm_linear_backward)
def _linear_backward_formula(gy, x, mean, var, norm_weight, norm_bias, weight, *args, out_shape=None, **kwargs) -> int:
    return 3 * _norm(x) + 2 * _product(x, weight)  # the normalised rows once more
