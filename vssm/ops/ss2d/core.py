"""SS2D on the compiled core (csrc/kernels/scan_*.cpp): dt projection, scan along every route and merge in one call.

x and y are channels-last maps, `proj` the raster projections (B, H, W, K*(R+2N)). No autograd. Everything is computed
in float32, or in float64 if any tensor is; outputs and gradients have that dtype.
"""

import torch
from torch import Tensor

from vssm.ops.routes import visit_order
from vssm.ops.selective_scan.core import Sizes, prepare, run
from vssm.ops.tensors import core_dtype


def _sizes(x: Tensor, dt_weight: Tensor, A: Tensor) -> Sizes:
    batch, channels, height, width = x.shape
    K, _, R = dt_weight.shape
    return Sizes(batch, K, channels, height * width, R, A.shape[1], True, False)


def _inputs(dtype, x, proj, dt_weight, dt_bias, A, D, routes) -> dict[str, Tensor]:
    rest = prepare(dtype, proj=proj, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D)
    return {"u": _channels_last(x, dtype), **rest, "order": visit_order(tuple(routes), *x.shape[2:])}


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> contiguous (B, H, W, C), without a copy when x has channels_last memory."""
    return x.permute(0, 2, 3, 1).to(dtype).contiguous()


def forward(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor | None, routes: list[int]
) -> Tensor:
    """y (B, C, H, W) in channels_last memory."""
    dtype = core_dtype(x, proj, dt_weight, dt_bias, A, D)
    tensors = _inputs(dtype, x, proj, dt_weight, dt_bias, A, D, routes)
    y = torch.empty_like(tensors["u"])
    run("scan_forward", dtype, _sizes(x, dt_weight, A), {**tensors, "y": y})
    return y.permute(0, 3, 1, 2)


def states_forward(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, routes: list[int]) -> Tensor:
    """h (B, K, C, N, H, W), whose memory is (B, K, N, H, W, C)."""
    dtype = core_dtype(x, proj, dt_weight, dt_bias, A)
    tensors = _inputs(dtype, x, proj, dt_weight, dt_bias, A, None, routes)
    batch, channels, height, width = x.shape
    h = x.new_empty((batch, dt_weight.shape[0], A.shape[1], height, width, channels), dtype=dtype)
    run("scan_forward", dtype, _sizes(x, dt_weight, A), {**tensors, "states": h})
    return h.permute(0, 1, 5, 2, 3, 4)


def backward(gy: Tensor, x, proj, dt_weight, dt_bias, A, D, routes) -> tuple[Tensor | None, ...]:
    """(dx, dproj, ddt_weight, ddt_bias, dA, dD); dD is None when D is."""
    dtype = core_dtype(gy, x, proj, dt_weight, dt_bias, A, D)
    return _gradients(dtype, x, proj, dt_weight, dt_bias, A, D, routes, gy=_channels_last(gy, dtype))


def states_backward(gh: Tensor, x, proj, dt_weight, dt_bias, A, routes) -> tuple[Tensor | None, ...]:
    """(dx, dproj, ddt_weight, ddt_bias, dA) given gh (B, K, C, N, H, W)."""
    dtype = core_dtype(gh, x, proj, dt_weight, dt_bias, A)
    gstates = gh.permute(0, 1, 3, 4, 5, 2).to(dtype).contiguous()
    return _gradients(dtype, x, proj, dt_weight, dt_bias, A, None, routes, gstates=gstates)[:-1]


def _gradients(dtype, x, proj, dt_weight, dt_bias, A, D, routes, **incoming) -> tuple[Tensor | None, ...]:
    tensors = _inputs(dtype, x, proj, dt_weight, dt_bias, A, D, routes)
    grads = {"d" + name: torch.empty_like(t) for name, t in tensors.items() if name != "order"}
    run("scan_backward", dtype, _sizes(x, dt_weight, A), {**tensors, **incoming, **grads})
    names = ("dproj", "ddt_weight", "ddt_bias", "dA", "dD")
    return grads["du"].permute(0, 3, 1, 2), *(grads.get(name) for name in names)
