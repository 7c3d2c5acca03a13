"""Registration of `vssm::bias_act`: schema, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.bias_act import core, torch_path
from vssm.ops.pointwise import as_inputs, call, differentiable

dispatch.register("bias_act", core=None, torch=None, reference=None)


def _bias_act(x, bias, act, path):
    implementation = core if dispatch.choose("bias_act", x, path) == "core" else torch_path
    return implementation.forward(x, bias, act)


def _bias_act_fake(x, bias, act, path):
    return x.new_empty(x.shape)


def _bias_act_backward(gy, x, bias, act, path):
    implementation = core if dispatch.choose("bias_act", x, path) == "core" else torch_path
    return as_inputs((x, bias), implementation.backward(gy, x, bias, act))


def _bias_act_backward_fake(gy, x, bias, act, path):
    return [x.new_empty(x.shape), x.new_empty(0) if bias is None else torch.empty_like(bias)]


def _setup(ctx, inputs, output):
    x, bias, ctx.act, ctx.path = inputs
    ctx.save_for_backward(x, bias)


def _autograd(ctx, gy):
    grads = call(torch.ops.vssm.bias_act_backward.default, gy, *ctx.saved_tensors, ctx.act, ctx.path)
    return (*library.empty_like_or_none(grads), None, None)


library.define("bias_act(Tensor x, Tensor? bias, str act, str path) -> Tensor", _bias_act, _bias_act_fake)
library.define(
    "bias_act_backward(Tensor gy, Tensor x, Tensor? bias, str act, str path) -> Tensor[]",
    _bias_act_backward,
    _bias_act_backward_fake,
)
differentiable("bias_act", _autograd, _setup)


@register_flop_formula([torch.ops.vssm.bias_act, torch.ops.vssm.bias_act_backward])
def _formula(*args, out_shape=None, **kwargs) -> int:
    return 0  # as fvcore and torch count activations and additions
