"""`vssm::ss2d_readout`, y = sum_kn C_kn h_kn + skip x: on the compiled core, on Triton and in plain torch."""

import struct

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library, native
from vssm.ops.pointwise import address, as_inputs, call, channels_last, dense, differentiable, empty_map

dispatch.register("ss2d_readout", core=None, triton=None, torch=None, reference=None)

# struct ReadoutArgs: is_double, batch, terms, pixels, channels, h, C, x, skip, y, dh, dC.
_ARGUMENTS = struct.Struct("12q")


def plain(h: Tensor, C: Tensor, x: Tensor | None, skip: Tensor | None) -> Tensor:
    """The equation. h (B, K, E, N, H, W), C (B, K, N, H, W), x (B, E, H, W) and skip (E,): both or neither."""
    # State by state in the layout that `ss2d_states` writes, (B, K, N, H, W, E): one sum over both dimensions goes
    # across the memory.
    maps = h.permute(0, 1, 3, 4, 5, 2).flatten(1, 2).unbind(1)
    weights = C.to(h.dtype).flatten(1, 2).unsqueeze(-1).unbind(1)
    y = maps[0] * weights[0]
    for h_kn, C_kn in zip(maps[1:], weights[1:]):
        y = torch.addcmul(y, h_kn, C_kn)
    y = y.permute(0, 3, 1, 2)
    if skip is None or x is None:
        return y
    return torch.addcmul(y, x.to(h.dtype), skip.to(h.dtype)[:, None, None])


def _plain_backward(g: Tensor, h: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    wide = g[:, None, :, None]
    return wide * C.to(h.dtype).unsqueeze(2), (wide * h).sum(2)


def _pack(h: Tensor, C: Tensor, *tensors: Tensor | None) -> bytes:
    batch, K, channels, N, height, width = h.shape
    sizes = (h.dtype is torch.float64, batch, K * N, height * width, channels)
    return _ARGUMENTS.pack(*sizes, address(h), address(C), *map(address, tensors))


def _states(h: Tensor) -> Tensor:
    """The same tensor with the memory (B, K, N, H, W, E)."""
    return dense(h.permute(0, 1, 3, 4, 5, 2), h.dtype).permute(0, 1, 5, 2, 3, 4)


def _choose(h, path):
    """The path taken; the core reads no half precision, which `ss2d_states` never writes."""
    chosen = dispatch.choose("ss2d_readout", h, path)
    return "torch" if chosen == "core" and h.dtype in (torch.bfloat16, torch.float16) else chosen


def _triton():
    """The Triton path; importing it takes a second, so it waits for the first call."""
    from vssm.ops.ss2d import triton_readout

    return triton_readout


def _readout(h, C, x, skip, path):
    chosen = _choose(h, path)
    if chosen == "triton":
        return _triton().forward(h, C, x, skip)
    if chosen == "torch":
        return channels_last(plain(h, C, x, skip))
    h, C, skip = _states(h), dense(C, h.dtype), dense(skip, h.dtype)
    x = None if x is None else channels_last(x.to(h.dtype))
    y = _empty(h)
    native.call("readout_forward", _pack(h, C, x, skip, y, None, None))
    return y


def _empty(h):
    batch, _, channels, _, height, width = h.shape
    return h.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)


def _readout_fake(h, C, x, skip, path):
    return _empty(h)


def _readout_backward(g, h, C, x, skip, path):
    chosen = _choose(h, path)
    dx = dskip = None
    if chosen == "triton":
        dh, dC = _triton().backward(g, h, C)
        if x is not None and skip is not None:
            dx, dskip = _triton().skip_backward(g, x, skip)
        return as_inputs((h, C, x, skip), (dh, dC, dx, dskip))
    if chosen == "core":
        wide_h, wide_C, g = _states(h), dense(C, h.dtype), channels_last(g.to(h.dtype))
        dh, dC = torch.empty_like(wide_h), torch.empty_like(wide_C)
        native.call("readout_backward", _pack(wide_h, wide_C, None, None, g, dh, dC))
    else:
        dh, dC = _plain_backward(g, h, C)
        dh = _states(dh)
    if x is not None and skip is not None:
        g = channels_last(g)
        dx, dskip = g * skip.to(g.dtype)[:, None, None], (g * x.to(g.dtype)).sum((0, 2, 3))
    return as_inputs((h, C, x, skip), (dh, dC, dx, dskip))


def _readout_backward_fake(g, h, C, x, skip, path):
    absent = h.new_empty(0)
    rest = [absent, absent.clone()] if x is None or skip is None else [empty_map(x), torch.empty_like(skip)]
    B, K, E, N, H, W = h.shape
    return [h.new_empty((B, K, N, H, W, E)).permute(0, 1, 5, 2, 3, 4), C.new_empty(C.shape), *rest]


def _setup(ctx, inputs, output):
    *tensors, ctx.path = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, g):
    grads = call(torch.ops.vssm.ss2d_readout_backward.default, g, *ctx.saved_tensors, ctx.path)
    return (*library.empty_like_or_none(grads), None)


_INPUTS = "Tensor h, Tensor C, Tensor? x, Tensor? skip, str path"
library.define(f"ss2d_readout({_INPUTS}) -> Tensor", _readout, _readout_fake)
library.define(f"ss2d_readout_backward(Tensor g, {_INPUTS}) -> Tensor[]", _readout_backward, _readout_backward_fake)
differentiable("ss2d_readout", _autograd, _setup)


@register_flop_formula(torch.ops.vssm.ss2d_readout)
def _formula(h_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * torch.Size(h_shape).numel()


@register_flop_formula(torch.ops.vssm.ss2d_readout_backward)
def _backward_formula(g_shape, h_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * 2 * torch.Size(h_shape).numel()
