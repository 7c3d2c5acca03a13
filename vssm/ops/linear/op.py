"""Registration of `vssm::linear`: schema, shapes, FLOPs; no autograd formula, it runs without gradients only."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library, native
from vssm.ops.linear import core, reference


def _only_where_ahead(device, dtype):
    # Measured against MKL (benchmarks/pointwise.py --part linear). Without wide vectors and with other libraries behind
    # torch, the library is left its trade.
    if native.isa() in ("avx512", "avx2"):
        return None
    return dispatch.NotFaster(f"torch's matrix product is as fast with {native.isa()} vectors")


dispatch.register("linear", core=_only_where_ahead, torch=None, reference=None)


def _linear(x, weight, bias, act, residual, path):
    implementation = core.forward if dispatch.choose("linear", x, path) == "core" else reference.linear
    return implementation(x, weight, bias, act, residual)


def _linear_fake(x, weight, bias, act, residual, path):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


library.define(
    "linear(Tensor x, Tensor weight, Tensor? bias, str act, Tensor? residual, str path) -> Tensor",
    _linear,
    _linear_fake,
)


@register_flop_formula(torch.ops.vssm.linear)
def _formula(x, weight, *args, out_shape=None, **kwargs) -> int:
    rows = 1
    for size in x[:-1]:
        rows *= size
    return 2 * rows * weight[0] * weight[1]
