"""Registration of `vssm::mlp`: schema, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.mlp import core, reference

dispatch.register("mlp", core=None, torch=None, reference=None)


def _mlp(x, weight1, bias1, weight2, bias2, residual, path):
    implementation = core.forward if dispatch.choose("mlp", x, path) == "core" else reference.mlp
    return implementation(x, weight1, bias1, weight2, bias2, residual)


def _mlp_fake(x, weight1, bias1, weight2, bias2, residual, path):
    return x.new_empty((*x.shape[:-1], weight2.shape[0]))


def _backward(gy, x, weight1, bias1, weight2, path):
    return list(core.backward(gy, x, weight1, bias1, weight2))


def _backward_fake(gy, x, weight1, bias1, weight2, path):
    like = (x, weight1, bias1, weight2)
    return [*(t.new_empty(t.shape) for t in like), x.new_empty(weight2.shape[0])]


def _setup(ctx, inputs, output):
    x, weight1, bias1, weight2, _, residual, ctx.path = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, weight1, bias1, weight2)


def _autograd(ctx, gy):
    grads = torch.ops.vssm.mlp_backward(gy, *ctx.saved_tensors, ctx.path)
    return (*grads, gy if ctx.has_residual else None, None)


_WEIGHTS = "Tensor weight1, Tensor bias1, Tensor weight2"
library.define(f"mlp(Tensor x, {_WEIGHTS}, Tensor bias2, Tensor? residual, str path) -> Tensor", _mlp, _mlp_fake)
library.define(f"mlp_backward(Tensor gy, Tensor x, {_WEIGHTS}, str path) -> Tensor[]", _backward, _backward_fake)
library.differentiable("mlp", _autograd, _setup)


@register_flop_formula(torch.ops.vssm.mlp)
def _formula(x, weight1, bias1, weight2, *args, out_shape=None, **kwargs) -> int:
    return 2 * _rows(x) * (weight1[0] * weight1[1] + weight2[0] * weight2[1])


@register_flop_formula(torch.ops.vssm.mlp_backward)
def _backward_formula(gy, x, weight1, bias1, weight2, *args, out_shape=None, **kwargs) -> int:
    first, second = weight1[0] * weight1[1], weight2[0] * weight2[1]
    return 2 * _rows(x) * (3 * first + 2 * second)  # the first product once more, to recompute the hidden rows


def _rows(x) -> int:
    rows = 1
    for size in x[:-1]:
        rows *= size
    return rows
