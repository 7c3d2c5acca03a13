"""Registration of `vssm::state_fusion` and `vssm::state_fusion_readout`: schema, shapes, autograd, FLOPs.

The n kernels arrive stacked, (n, C, 1, k, k).
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import as_inputs, call, differentiable, empty_map, to
from vssm.ops.state_fusion import core, torch_path

dispatch.register("state_fusion", core=None, triton=None, torch=None, reference=None)
dispatch.register("state_fusion_readout", core=None, triton=None, torch=None, reference=None)


def reaching(h, dilations: list[int]) -> list[int]:
    """The dilations cut off at the map's longer side, from where on a tap sees the repeated border in any case."""
    size = max(h.shape[2], h.shape[3])
    return [min(d, size) for d in dilations]


def _choose(op: str, h, kernels, path: str, *others) -> str:
    """The path; the core and Triton visit the nine taps of 3x3 kernels, other sizes are convolutions of torch."""
    if kernels.shape[-1] == 3:
        return dispatch.choose(op, h, path, kernels, *others)
    if path == "core":
        size = kernels.shape[-1]
        raise dispatch.PathUnavailable(
            f"path 'core' was demanded for {op} and cannot run: it fuses with 3x3 kernels, these are {size}x{size}; "
            "leave the choice free, or demand 'torch'"
        )
    return "torch"


def _triton():
    """The Triton path; importing it takes a second, so it waits for the first call."""
    from vssm.ops.state_fusion import triton

    return triton


def _fusion(h, kernels, alphas, dilations, form, path):
    dilations = reaching(h, dilations)
    chosen = _choose("state_fusion", h, kernels, path, alphas)
    if chosen == "core":
        return core.forward(h, kernels, alphas, dilations)
    if chosen == "triton":
        return _triton().forward(h, kernels, alphas, dilations)
    wide, kernels, alphas = to(at_least_float32(h, kernels, alphas), h, kernels, alphas)
    return torch_path.forward(wide, kernels, alphas, dilations, form).to(h.dtype)


def _fusion_fake(h, kernels, alphas, dilations, form, path):
    return empty_map(h)


def _fusion_backward(g, h, kernels, alphas, dilations, form, path):
    dilations = reaching(h, dilations)
    chosen = _choose("state_fusion", h, kernels, path, alphas)
    if chosen == "core":
        grads = core.backward(g, h, kernels, alphas, dilations)
    elif chosen == "triton":
        grads = _triton().backward(g, h, kernels, alphas, dilations)
    else:
        wide = to(at_least_float32(h, kernels, alphas), g, h, kernels, alphas)
        grads = torch_path.backward(wide[0], wide[1], wide[2], wide[3], dilations, form)
    return as_inputs((h, kernels, alphas), grads)


def _fusion_backward_fake(g, h, kernels, alphas, dilations, form, path):
    return [empty_map(h), kernels.new_empty(kernels.shape), torch.empty_like(alphas)]


def _setup(ctx, inputs, output):
    h, kernels, alphas, ctx.dilations, ctx.form, ctx.path = inputs
    ctx.save_for_backward(h, kernels, alphas)


def _autograd(ctx, g):
    grads = call(torch.ops.vssm.state_fusion_backward.default, g, *ctx.saved_tensors, ctx.dilations, ctx.form, ctx.path)
    return (*grads, None, None, None)


_ARGUMENTS = "Tensor h, Tensor kernels, Tensor alphas, int[] dilations, str form, str path"
library.define(f"state_fusion({_ARGUMENTS}) -> Tensor", _fusion, _fusion_fake)
library.define(f"state_fusion_backward(Tensor g, {_ARGUMENTS}) -> Tensor[]", _fusion_backward, _fusion_backward_fake)
differentiable("state_fusion", _autograd, _setup)


# ---- state_fusion_readout: C * fused + D * u ----


def _readout(h, kernels, alphas, C, u, D, dilations, path):
    dilations = reaching(h, dilations)
    chosen = _choose("state_fusion_readout", h, kernels, path, alphas, C, u, D)
    if chosen == "core":
        return core.readout_forward(h, kernels, alphas, C, u, D, dilations)
    if chosen == "triton":
        return _triton().readout_forward(h, kernels, alphas, C, u, D, dilations)
    dtype = at_least_float32(h, kernels, alphas, C, u, D)
    h, kernels, alphas, C, u, D = to(dtype, h, kernels, alphas, C, u, D)
    return torch_path.readout_forward(h, kernels, alphas, C, u, D, dilations)


def _readout_fake(h, kernels, alphas, C, u, D, dilations, path):
    return empty_map(h, at_least_float32(h, kernels, alphas, C, u, D))


def _readout_backward(g, h, kernels, alphas, C, u, D, dilations, path):
    dilations = reaching(h, dilations)
    inputs = (h, kernels, alphas, C, u, D)
    chosen = _choose("state_fusion_readout", h, kernels, path, alphas, C, u, D)
    if chosen == "core":
        return as_inputs(inputs, core.readout_backward(g, *inputs, dilations))
    if chosen == "triton":
        return as_inputs(inputs, _triton().readout_backward(g, *inputs, dilations))
    g, h, kernels, alphas, C, u, D = to(at_least_float32(*inputs), g, *inputs)
    return as_inputs(inputs, torch_path.readout_backward(g, h, kernels, alphas, C, u, D, dilations))


def _readout_backward_fake(g, h, kernels, alphas, C, u, D, dilations, path):
    absent = h.new_empty(0)
    skip = [absent, absent.clone()] if u is None or D is None else [empty_map(u), torch.empty_like(D)]
    return [empty_map(h), kernels.new_empty(kernels.shape), torch.empty_like(alphas), C.new_empty(C.shape), *skip]


def _readout_setup(ctx, inputs, output):
    *tensors, ctx.dilations, ctx.path = inputs
    ctx.save_for_backward(*tensors)


def _readout_autograd(ctx, g):
    grads = call(torch.ops.vssm.state_fusion_readout_backward.default, g, *ctx.saved_tensors, ctx.dilations, ctx.path)
    return (*library.empty_like_or_none(grads), None, None)


_READOUT = "Tensor h, Tensor kernels, Tensor alphas, Tensor C, Tensor? u, Tensor? D, int[] dilations, str path"
library.define(f"state_fusion_readout({_READOUT}) -> Tensor", _readout, _readout_fake)
library.define(
    f"state_fusion_readout_backward(Tensor g, {_READOUT}) -> Tensor[]", _readout_backward, _readout_backward_fake
)
differentiable("state_fusion_readout", _readout_autograd, _readout_setup)


# ---- FLOPs: one multiply-add per tap of each kernel and element, as the papers count the training form ----


def _taps(kernels_shape) -> int:
    return kernels_shape[0] * kernels_shape[-1] ** 2


@register_flop_formula(torch.ops.vssm.state_fusion)
def _formula(h_shape, kernels_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * _taps(kernels_shape) * torch.Size(h_shape).numel()


@register_flop_formula(torch.ops.vssm.state_fusion_backward)
def _backward_formula(g_shape, h_shape, kernels_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * _taps(kernels_shape) * torch.Size(h_shape).numel()


@register_flop_formula(torch.ops.vssm.state_fusion_readout)
def _readout_formula(h_shape, kernels_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * (_taps(kernels_shape) + 2) * torch.Size(h_shape).numel()


@register_flop_formula(torch.ops.vssm.state_fusion_readout_backward)
def _readout_backward_formula(g_shape, h_shape, kernels_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * (3 * _taps(kernels_shape) + 4) * torch.Size(h_shape).numel()  # the fusion once more, for dC
