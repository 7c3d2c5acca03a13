"""Registration of `vssm::bottleneck`: schema, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.bottleneck import core, reference

dispatch.register("bottleneck", core=None, torch=None, reference=None)


def _bottleneck(x, weight1, bias1, weight2, bias2, weight3, bias3, path):
    implementation = core.forward if dispatch.choose("bottleneck", x, path) == "core" else reference.bottleneck
    return implementation(x, weight1, bias1, weight2, bias2, weight3, bias3)


def _bottleneck_fake(x, weight1, bias1, weight2, bias2, weight3, bias3, path):
    batch, height, width, _ = x.shape
    return x.new_empty(batch, (height + 1) // 2, (width + 1) // 2, weight3.shape[0])


def _backward(gy, x, weight1, bias1, weight2, bias2, weight3, path):
    return list(core.backward(gy, x, weight1, bias1, weight2, bias2, weight3))


def _backward_fake(gy, x, weight1, bias1, weight2, bias2, weight3, path):
    like = (x, weight1, bias1, weight2, bias2, weight3)
    return [*(t.new_empty(t.shape) for t in like), x.new_empty(weight3.shape[0])]


def _setup(ctx, inputs, output):
    *tensors, _, ctx.path = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, gy):
    return (*torch.ops.vssm.bottleneck_backward(gy, *ctx.saved_tensors, ctx.path), None)


_WEIGHTS = "Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor weight3"
library.define(f"bottleneck(Tensor x, {_WEIGHTS}, Tensor bias3, str path) -> Tensor", _bottleneck, _bottleneck_fake)
library.define(f"bottleneck_backward(Tensor gy, Tensor x, {_WEIGHTS}, str path) -> Tensor[]", _backward, _backward_fake)
library.differentiable("bottleneck", _autograd, _setup)


def _counts(x, weight1, weight3) -> tuple[int, int, int]:
    """Multiply-adds of the three convolutions."""
    batch, height, width, dim = x
    wide, out = weight1[0], weight3[0]
    pixels, halved = batch * height * width, batch * ((height + 1) // 2) * ((width + 1) // 2)
    return pixels * dim * wide, halved * 9 * wide, halved * wide * out


@register_flop_formula(torch.ops.vssm.bottleneck)
def _formula(x, weight1, bias1, weight2, bias2, weight3, *args, out_shape=None, **kwargs) -> int:
    return 2 * sum(_counts(x, weight1, weight3))


@register_flop_formula(torch.ops.vssm.bottleneck_backward)
def _backward_formula(gy, x, weight1, bias1, weight2, bias2, weight3, *args, out_shape=None, **kwargs) -> int:
    first, second, third = _counts(x, weight1, weight3)
    return 2 * (3 * first + 3 * second + 2 * third)  # the first two once more, to recompute the wide maps
