"""SS2D on the compiled core (csrc/kernels/scan_*.cpp): dt projection, scan along every route and merge in one call.

x and y are channels-last maps, `proj` the raster projections (B, H, W, K*(R+2N)); routes are the table `order`
(K, H*W). No autograd. Everything is computed in float32, or in float64 if any tensor is; outputs have that dtype and
every gradient the dtype of its input.
"""

import torch
from torch import Tensor

from vssm.ops.selective_scan.core import Sizes, compute_dtype, prepare, run


def _sizes(x: Tensor, dt_weight: Tensor, A: Tensor) -> Sizes:
    batch, channels, height, width = x.shape
    K, _, R = dt_weight.shape
    return Sizes(batch, K, channels, height * width, R, A.shape[1], True, False)


def _inputs(dtype, x, proj, dt_weight, dt_bias, A, D, order) -> dict[str, Tensor]:
    rest = prepare(dtype, proj=proj, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D)
    return {"u": _channels_last(x, dtype), **rest, "order": order}


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> contiguous (B, H, W, C), without a copy when x has channels_last memory."""
    return x.permute(0, 2, 3, 1).to(dtype).contiguous()


def forward(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor | None, order: Tensor
) -> Tensor:
    """y (B, C, H, W) in channels_last memory."""
    dtype = compute_dtype(x, proj, dt_weight, dt_bias, A, D)
    tensors = _inputs(dtype, x, proj, dt_weight, dt_bias, A, D, order)
    y = torch.empty_like(tensors["u"])
    run("scan_forward", dtype, _sizes(x, dt_weight, A), {**tensors, "y": y})
    return y.permute(0, 3, 1, 2)


def states_forward(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, order: Tensor) -> Tensor:
    """h (B, K, C, N, H, W), whose memory is (B, K, N, H, W, C)."""
    dtype = compute_dtype(x, proj, dt_weight, dt_bias, A)
    tensors = _inputs(dtype, x, proj, dt_weight, dt_bias, A, None, order)
    batch, channels, height, width = x.shape
    h = x.new_empty((batch, dt_weight.shape[0], A.shape[1], height, width, channels), dtype=dtype)
    run("scan_forward", dtype, _sizes(x, dt_weight, A), {**tensors, "states": h})
    return h.permute(0, 1, 5, 2, 3, 4)


def backward(gy: Tensor, x, proj, dt_weight, dt_bias, A, D, order) -> tuple[Tensor | None, ...]:
    """(dx, dproj, ddt_weight, ddt_bias, dA, dD); dD is None when D is."""
    dtype = compute_dtype(gy, x, proj, dt_weight, dt_bias, A, D)
    return _gradients(dtype, x, proj, dt_weight, dt_bias, A, D, order, gy=_channels_last(gy, dtype))


def states_backward(gh: Tensor, x, proj, dt_weight, dt_bias, A, order) -> tuple[Tensor | None, ...]:
    """(dx, dproj, ddt_weight, ddt_bias, dA) given gh (B, K, C, N, H, W)."""
    dtype = compute_dtype(gh, x, proj, dt_weight, dt_bias, A)
    gstates = gh.permute(0, 1, 3, 4, 5, 2).to(dtype).contiguous()
    return _gradients(dtype, x, proj, dt_weight, dt_bias, A, None, order, gstates=gstates)[:-1]


def _gradients(dtype, x, proj, dt_weight, dt_bias, A, D, order, **incoming) -> tuple[Tensor | None, ...]:
    tensors = _inputs(dtype, x, proj, dt_weight, dt_bias, A, D, order)
    grads = {"d" + name: torch.empty_like(t) for name, t in tensors.items() if name != "order"}
    run("scan_backward", dtype, _sizes(x, dt_weight, A), {**tensors, **incoming, **grads})
    dx = grads["du"].permute(0, 3, 1, 2).to(x.dtype)
    inputs = {"dproj": proj, "ddt_weight": dt_weight, "ddt_bias": dt_bias, "dA": A, "dD": D}
    return (dx, *(None if t is None else grads[name].to(t.dtype) for name, t in inputs.items()))
