"""SS2D on the compiled core (csrc/kernels/scan_*.cpp): dt projection, scan along every route and merge in one call.

x and y are channels-last maps, `proj` the raster projections (B, H, W, K*(R+2N)); routes are the table `order`
(K, H*W). No autograd. Everything is computed in float32, or in float64 if any tensor is; outputs have that dtype and
every gradient the dtype of its input.
"""

import torch
from torch import Tensor

from vssm.ops.selective_scan.core import compute_dtype, dense, run


def _sizes(x: Tensor, dt_weight: Tensor, A: Tensor) -> dict[str, int]:
    batch, channels, height, width = x.shape
    K, _, R = dt_weight.shape
    return {
        "batch": batch,
        "routes": K,
        "channels": channels,
        "length": height * width,
        "rank": R,
        "state": A.shape[1],
        "softplus": 1,
        "separate": 0,
    }


def _inputs(dtype, x, proj, dt_weight, dt_bias, A, D, order) -> dict[str, Tensor | None]:
    return {
        "u": _channels_last(x, dtype),
        "proj": dense(proj, dtype),
        "dt_weight": dense(dt_weight, dtype),
        "dt_bias": dense(dt_bias, dtype),
        "A": dense(A, dtype),
        "D": dense(D, dtype),
        "order": order,
    }


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
    order_of_grads = ("u", "proj", "dt_weight", "dt_bias", "A", "D")
    grads = {"d" + name: None if tensors[name] is None else torch.empty_like(tensors[name]) for name in order_of_grads}
    run("scan_backward", dtype, _sizes(x, dt_weight, A), {**tensors, **incoming, **grads})
    dx, *rest = grads.values()
    dx = dx.permute(0, 3, 1, 2).to(x.dtype)
    inputs = (proj, dt_weight, dt_bias, A, D)
    return (dx, *(None if g is None else g.to(i.dtype) for g, i in zip(rest, inputs, strict=True)))
