"""Registration of `vssm::state_fusion`: schema, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import empty_map
from vssm.ops.state_fusion import core, torch_path

dispatch.register("state_fusion", core=None, torch=None, reference=None)


def _widen(h, kernels, alphas):
    dtype = at_least_float32(h, alphas, *kernels)
    return h.to(dtype), [k.to(dtype) for k in kernels], alphas.to(dtype)


def _fusion(h, kernels, alphas, dilations, form, path):
    if dispatch.choose("state_fusion", h, path) == "core":
        return core.forward(h, kernels, alphas, dilations)
    return torch_path.forward(*_widen(h, kernels, alphas), dilations, form).to(h.dtype)


def _fusion_fake(h, kernels, alphas, dilations, form, path):
    return empty_map(h)


def _fusion_backward(g, h, kernels, alphas, dilations, form, path):
    if dispatch.choose("state_fusion", h, path) == "core":
        dh, dkernels, dalphas = core.backward(g, h, kernels, alphas, dilations)
    else:
        wide = _widen(h, kernels, alphas)
        dh, dkernels, dalphas = torch_path.backward(g.to(wide[0].dtype), *wide, dilations, form)
    grads = [dh.to(h.dtype), dalphas.to(alphas.dtype)]
    return grads + [dk.to(k.dtype) for dk, k in zip(dkernels, kernels, strict=True)]


def _fusion_backward_fake(g, h, kernels, alphas, dilations, form, path):
    return [empty_map(h), torch.empty_like(alphas), *(k.new_empty(k.shape) for k in kernels)]


def _setup(ctx, inputs, output):
    h, kernels, alphas, ctx.dilations, ctx.form, ctx.path = inputs
    ctx.save_for_backward(h, alphas, *kernels)


def _autograd(ctx, g):
    h, alphas, *kernels = ctx.saved_tensors
    dh, dalphas, *dkernels = torch.ops.vssm.state_fusion_backward(
        g, h, kernels, alphas, ctx.dilations, ctx.form, ctx.path
    )
    return dh, dkernels, dalphas, None, None, None


_ARGUMENTS = "Tensor h, Tensor[] kernels, Tensor alphas, int[] dilations, str form, str path"
library.define(f"state_fusion({_ARGUMENTS}) -> Tensor", _fusion, _fusion_fake)
library.define(f"state_fusion_backward(Tensor g, {_ARGUMENTS}) -> Tensor[]", _fusion_backward, _fusion_backward_fake)
library.differentiable("state_fusion", _autograd, _setup)


# ---- FLOPs: nine multiply-adds per kernel and element, as the papers count the training form ----


@register_flop_formula(torch.ops.vssm.state_fusion)
def _formula(h_shape, kernels, *args, out_shape=None, **kwargs) -> int:
    return 2 * 9 * len(kernels) * torch.Size(h_shape).numel()


@register_flop_formula(torch.ops.vssm.state_fusion_backward)
def _backward_formula(g_shape, h_shape, kernels, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * 9 * len(kernels) * torch.Size(h_shape).numel()
