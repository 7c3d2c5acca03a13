"""Registration of `vssm::ss2d` and `vssm::ss2d_states`: schemas, shapes, autograd, FLOPs."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, gpu, library
from vssm.ops.routes import visit_order
from vssm.ops.selective_scan.op import as_inputs, scan_flops
from vssm.ops.ss2d import core, two_level

dispatch.register("ss2d", core=None, triton=None, torch=None, reference=None)
dispatch.register("ss2d_states", core=None, triton=None, torch=None, reference=None)

_INPUTS = "Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, "


def _order(x, routes):
    return visit_order(tuple(routes), x.shape[2], x.shape[3])


def _triton(dt_weight, A):
    """The Triton path for sizes that it takes; importing it takes a second, so it waits for the first call."""
    gpu.check_scan_fits(A.shape[1], dt_weight.shape[2])
    from vssm.ops.ss2d import triton

    return triton


def _map_like(x, dtype=None):
    """An empty map like x in channels_last memory."""
    batch, channels, height, width = x.shape
    return x.new_empty((batch, height, width, channels), dtype=dtype or x.dtype).permute(0, 3, 1, 2)


# ---- ss2d ----


def _ss2d(x, proj, dt_weight, dt_bias, A, D, routes, path):
    args = (x, proj, dt_weight, dt_bias, A, D)
    chosen = dispatch.choose("ss2d", x, path, *args[1:])
    if chosen == "core":
        return core.forward(*args, _order(x, routes))
    if chosen == "triton":
        return _triton(dt_weight, A).forward(*args, routes)
    return two_level.forward(*library.widened(*args, _order(x, routes)))


def _ss2d_fake(x, proj, dt_weight, dt_bias, A, D, routes, path):
    return _map_like(x, library.at_least_float32(x, proj, dt_weight, dt_bias, A, D))


def _ss2d_backward(gy, x, proj, dt_weight, dt_bias, A, D, routes, path):
    args = (gy, x, proj, dt_weight, dt_bias, A, D)
    chosen = dispatch.choose("ss2d", x, path, *args[2:])
    if chosen == "core":
        grads = core.backward(*args, _order(x, routes))
    elif chosen == "triton":
        grads = _triton(dt_weight, A).backward(*args, routes)
    else:
        grads = two_level.backward(*library.widened(*args, _order(x, routes)))
    return as_inputs(grads, (x, proj, dt_weight, dt_bias, A, D))


def _ss2d_backward_fake(gy, x, proj, dt_weight, dt_bias, A, D, routes, path):
    return [_map_like(x), *_weights_like(proj, dt_weight, dt_bias, A, D)]


def _weights_like(first, *tensors):
    return [
        first.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (first, *tensors)
    ]


def _ss2d_setup(ctx, inputs, output):
    *tensors, ctx.routes, ctx.path = inputs
    ctx.save_for_backward(*tensors)


def _ss2d_autograd(ctx, gy):
    inputs = ctx.saved_tensors
    grads = torch.ops.vssm.ss2d_backward(gy, *inputs, ctx.routes, ctx.path)
    return (*(None if x is None else g for g, x in zip(grads, inputs, strict=True)), None, None)


library.define(f"ss2d({_INPUTS}Tensor? D, int[] routes, str path) -> Tensor", _ss2d, _ss2d_fake)
library.define(
    f"ss2d_backward(Tensor gy, {_INPUTS}Tensor? D, int[] routes, str path) -> Tensor[]",
    _ss2d_backward,
    _ss2d_backward_fake,
)
library.differentiable("ss2d", _ss2d_autograd, _ss2d_setup)


# ---- ss2d_states ----


def _states(x, proj, dt_weight, dt_bias, A, routes, path):
    args = (x, proj, dt_weight, dt_bias, A)
    chosen = dispatch.choose("ss2d_states", x, path, *args[1:])
    if chosen == "core":
        return core.states_forward(*args, _order(x, routes))
    if chosen == "triton":
        return _triton(dt_weight, A).states_forward(*args, routes)
    return two_level.states_forward(*library.widened(*args, _order(x, routes)))


def _states_fake(x, proj, dt_weight, dt_bias, A, routes, path):
    batch, channels, height, width = x.shape
    shape = (batch, dt_weight.shape[0], A.shape[1], height, width, channels)
    return x.new_empty(shape, dtype=library.at_least_float32(x, proj, dt_weight, dt_bias, A)).permute(0, 1, 5, 2, 3, 4)


def _states_backward(gh, x, proj, dt_weight, dt_bias, A, routes, path):
    args = (gh, x, proj, dt_weight, dt_bias, A)
    chosen = dispatch.choose("ss2d_states", x, path, *args[2:])
    if chosen == "core":
        grads = core.states_backward(*args, _order(x, routes))
    elif chosen == "triton":
        grads = _triton(dt_weight, A).states_backward(*args, routes)
    else:
        grads = two_level.states_backward_op(*library.widened(*args, _order(x, routes)))
    return as_inputs(grads, (x, proj, dt_weight, dt_bias, A))


def _states_backward_fake(gh, x, proj, dt_weight, dt_bias, A, routes, path):
    return [_map_like(x), *_weights_like(proj, dt_weight, dt_bias, A)]


def _states_setup(ctx, inputs, output):
    *tensors, ctx.routes, ctx.path = inputs
    ctx.save_for_backward(*tensors)


def _states_autograd(ctx, gh):
    grads = torch.ops.vssm.ss2d_states_backward(gh, *ctx.saved_tensors, ctx.routes, ctx.path)
    return (*grads, None, None)


library.define(f"ss2d_states({_INPUTS}int[] routes, str path) -> Tensor", _states, _states_fake)
library.define(
    f"ss2d_states_backward(Tensor gh, {_INPUTS}int[] routes, str path) -> Tensor[]",
    _states_backward,
    _states_backward_fake,
)
library.differentiable("ss2d_states", _states_autograd, _states_setup)


# ---- FLOPs: the scan of every route and the dt projection, two per multiply-add ----


def _formula(x, dt_weight, A, skip: bool) -> int:
    batch, _, height, width = x
    routes, channels, rank = dt_weight
    length = height * width
    projection = 2 * batch * length * routes * channels * rank
    return projection + scan_flops(batch, routes * channels, length, A[1], skip)


def _states_formula(x, dt_weight, A) -> int:
    batch, _, height, width = x
    routes, channels, rank = dt_weight
    return 2 * batch * height * width * routes * channels * (rank + 7 * A[1])


register_flop_formula(torch.ops.vssm.ss2d)(
    lambda x, proj, dt_weight, dt_bias, A, D, *args, out_shape=None, **kw: _formula(x, dt_weight, A, D is not None)
)
register_flop_formula(torch.ops.vssm.ss2d_backward)(
    lambda gy, x, proj, dt_weight, dt_bias, A, D, *args, out_shape=None, **kw: (
        2 * _formula(x, dt_weight, A, D is not None)
    )
)
register_flop_formula(torch.ops.vssm.ss2d_states)(
    lambda x, proj, dt_weight, dt_bias, A, *args, out_shape=None, **kw: _states_formula(x, dt_weight, A)
)
register_flop_formula(torch.ops.vssm.ss2d_states_backward)(
    lambda gh, x, proj, dt_weight, dt_bias, A, *args, out_shape=None, **kw: 2 * _states_formula(x, dt_weight, A)
)
