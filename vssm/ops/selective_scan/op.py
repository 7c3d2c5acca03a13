"""Registration of `vssm::selective_scan` and `vssm::selective_scan_states`: schemas, shapes, autograd, FLOPs."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, gpu, library
from vssm.ops.selective_scan import core, two_level

dispatch.register("selective_scan", core=None, triton=None, torch=None, reference=None)
dispatch.register("selective_scan_states", core=None, triton=None, torch=None, reference=None)

_INPUTS = "Tensor u, Tensor dt, Tensor A, Tensor B, "
_OPTIONS = "Tensor? dt_bias, bool dt_softplus, Tensor? initial_state, str path"


def as_inputs(grads, inputs) -> list[Tensor]:
    """Gradients in the dtype of their inputs; an absent one becomes the empty tensor that a schema can return."""
    first = inputs[0]
    return [first.new_empty(0) if g is None or x is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True)]


def _triton(A):
    """The Triton path for sizes that it takes; importing it takes a second, so it waits for the first call."""
    gpu.check_scan_fits(A.shape[1], 0)
    from vssm.ops.selective_scan import triton

    return triton


# ---- selective_scan ----


def _scan(u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, path):
    args = (u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)
    chosen = dispatch.choose("selective_scan", u, path, A, D, dt_bias, initial_state)
    if chosen == "core":
        return core.forward(*args)
    if chosen == "triton":
        return _triton(A).forward(*args)
    return two_level.forward(*library.widened(*args))


def _scan_fake(u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, path):
    dtype = library.at_least_float32(u, dt, A, B, C, D, dt_bias, initial_state)
    return u.new_empty(u.shape, dtype=dtype), u.new_empty((*u.shape[:2], A.shape[1]), dtype=dtype)


def _scan_backward(gy, glast, u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, path):
    args = (gy, glast, u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)
    chosen = dispatch.choose("selective_scan", u, path, A, D, dt_bias, initial_state)
    if chosen == "core":
        grads = core.backward(*args)
    elif chosen == "triton":
        grads = _triton(A).backward(*args)
    else:
        grads = two_level.backward(*library.widened(*args))
    return as_inputs(grads, (u, dt, A, B, C, D, dt_bias, initial_state))


def _scan_backward_fake(gy, glast, u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, path):
    return [
        u.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (u, dt, A, B, C, D, dt_bias, initial_state)
    ]


def _scan_setup(ctx, inputs, output):
    *tensors, ctx.dt_softplus, initial_state, ctx.path = inputs
    ctx.save_for_backward(*tensors, initial_state)
    ctx.set_materialize_grads(False)


def _scan_autograd(ctx, gy, glast):
    u, dt, A, B, C, D, dt_bias, initial_state = ctx.saved_tensors
    if gy is None:
        gy = torch.zeros_like(u, dtype=library.at_least_float32(u, dt, A, B, C, D, dt_bias, initial_state))
    grads = torch.ops.vssm.selective_scan_backward(
        gy, glast, u, dt, A, B, C, D, dt_bias, ctx.dt_softplus, initial_state, ctx.path
    )
    inputs = (u, dt, A, B, C, D, dt_bias, initial_state)
    *rest, dinitial = [None if x is None else g for g, x in zip(grads, inputs, strict=True)]
    return (*rest, None, dinitial, None)


library.define(f"selective_scan({_INPUTS}Tensor C, Tensor? D, {_OPTIONS}) -> (Tensor, Tensor)", _scan, _scan_fake)
library.define(
    f"selective_scan_backward(Tensor gy, Tensor? glast, {_INPUTS}Tensor C, Tensor? D, {_OPTIONS}) -> Tensor[]",
    _scan_backward,
    _scan_backward_fake,
)
library.differentiable("selective_scan", _scan_autograd, _scan_setup)


# ---- selective_scan_states ----


def _states(u, dt, A, B, dt_bias, dt_softplus, initial_state, path):
    args = (u, dt, A, B, dt_bias, dt_softplus, initial_state)
    chosen = dispatch.choose("selective_scan_states", u, path, A, dt_bias, initial_state)
    if chosen == "core":
        return core.states_forward(*args)
    if chosen == "triton":
        return _triton(A).states_forward(*args)
    return two_level.states_forward(*library.widened(*args))


def _states_fake(u, dt, A, B, dt_bias, dt_softplus, initial_state, path):
    shape = (*u.shape[:2], A.shape[1], u.shape[2])
    return u.new_empty(shape, dtype=library.at_least_float32(u, dt, A, B, dt_bias, initial_state))


def _states_backward(gh, u, dt, A, B, dt_bias, dt_softplus, initial_state, path):
    args = (gh, u, dt, A, B, dt_bias, dt_softplus, initial_state)
    chosen = dispatch.choose("selective_scan_states", u, path, A, dt_bias, initial_state)
    if chosen == "core":
        grads = core.states_backward(*args)
    elif chosen == "triton":
        grads = _triton(A).states_backward(*args)
    else:
        grads = two_level.states_backward_op(*library.widened(*args))
    return as_inputs(grads, (u, dt, A, B, dt_bias, initial_state))


def _states_backward_fake(gh, u, dt, A, B, dt_bias, dt_softplus, initial_state, path):
    return [
        u.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (u, dt, A, B, dt_bias, initial_state)
    ]


def _states_setup(ctx, inputs, output):
    *tensors, ctx.dt_softplus, initial_state, ctx.path = inputs
    ctx.save_for_backward(*tensors, initial_state)


def _states_autograd(ctx, gh):
    u, dt, A, B, dt_bias, initial_state = ctx.saved_tensors
    grads = torch.ops.vssm.selective_scan_states_backward(
        gh, u, dt, A, B, dt_bias, ctx.dt_softplus, initial_state, ctx.path
    )
    inputs = (u, dt, A, B, dt_bias, initial_state)
    *rest, dinitial = [None if x is None else g for g, x in zip(grads, inputs, strict=True)]
    return (*rest, None, dinitial, None)


library.define(f"selective_scan_states({_INPUTS}{_OPTIONS}) -> Tensor", _states, _states_fake)
library.define(
    f"selective_scan_states_backward(Tensor gh, {_INPUTS}{_OPTIONS}) -> Tensor[]",
    _states_backward,
    _states_backward_fake,
)
library.differentiable("selective_scan_states", _states_autograd, _states_setup)


# ---- FLOPs: two per multiply-add, with the papers' count of 9 N + 1 multiply-adds per element of the scan ----


def scan_flops(batch: int, channels: int, length: int, state: int, skip: bool) -> int:
    """FLOPs of one scan over `channels` (= K*C) sequences: 2 (9 B L D N + B D L)."""
    return 2 * (9 * batch * length * channels * state + (batch * length * channels if skip else 0))


def _scan_formula(u, dt, A, B, C, D, *args, out_shape=None, **kwargs) -> int:
    return scan_flops(u[0], u[1], u[2], A[1], D is not None)


def _states_formula(u, dt, A, *args, out_shape=None, **kwargs) -> int:
    return 2 * 7 * u[0] * u[1] * u[2] * A[1]  # without the readout by C, as Spatial-Mamba counts it


register_flop_formula(torch.ops.vssm.selective_scan)(_scan_formula)
register_flop_formula(torch.ops.vssm.selective_scan_states)(_states_formula)
register_flop_formula(torch.ops.vssm.selective_scan_backward)(
    lambda gy, glast, u, dt, A, B, C, D, *args, out_shape=None, **kw: (
        2 * scan_flops(u[0], u[1], u[2], A[1], D is not None)
    )
)
register_flop_formula(torch.ops.vssm.selective_scan_states_backward)(
    lambda gh, u, dt, A, *args, out_shape=None, **kw: 4 * 7 * u[0] * u[1] * u[2] * A[1]
)
