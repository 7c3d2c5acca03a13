"""Layer normalisation on the compiled core (csrc/kernels/layer_norm.cpp): one call on contiguous rows, no autograd."""

import struct

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.pointwise import ABSENT, address, compute_dtype, dense, result_dtype, typed

# struct LayerNormArgs: is_double, rows, channels, centred, eps, weight, bias, then (data, type) of x, branch, gate,
# total, y, gtotal, dx, dgate, then dweight, dbias.
_ARGUMENTS = struct.Struct("4qd2q16q2q")


def _sizes(x: Tensor, dtype: torch.dtype, centred: bool) -> tuple[int, int, int, bool]:
    channels = x.shape[-1]
    return dtype is torch.float64, x.numel() // channels, channels, centred


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None, eps: float, centred: bool = True
) -> Tensor:
    """See the public function; not `centred` it is `rms_norm`."""
    dtype = compute_dtype(x, weight, bias, gate)
    x = x.contiguous()
    gate = None if gate is None else gate.contiguous()
    wide_weight, wide_bias = dense(weight, dtype), dense(bias, dtype)
    y = torch.empty_like(x, dtype=result_dtype(x, weight, bias, gate))
    # fmt: off
    native.call("layer_norm_forward", _ARGUMENTS.pack(
        *_sizes(x, dtype, centred), eps, address(wide_weight), address(wide_bias),
        *typed(x), *ABSENT, *typed(gate), *ABSENT, *typed(y), *ABSENT, *ABSENT, *ABSENT, 0, 0,
    ))
    # fmt: on
    return y


def add_forward(
    x: Tensor, branch: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + branch, layer_norm(x + branch))."""
    dtype = compute_dtype(x, branch, weight, bias)
    x, branch = x.contiguous(), branch.contiguous()
    wide_weight, wide_bias = dense(weight, dtype), dense(bias, dtype)
    total = torch.empty_like(x, dtype=result_dtype(x, branch))
    y = torch.empty_like(x, dtype=result_dtype(total, weight, bias))
    # fmt: off
    native.call("layer_norm_forward", _ARGUMENTS.pack(
        *_sizes(x, dtype, True), eps, address(wide_weight), address(wide_bias),
        *typed(x), *typed(branch), *ABSENT, *typed(total), *typed(y), *ABSENT, *ABSENT, *ABSENT, 0, 0,
    ))
    # fmt: on
    return total, y


def backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    gate: Tensor | None,
    eps: float,
    gtotal: Tensor | None = None,
    centred: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight, dbias, dgate; None where the input is absent. `gtotal` is added to dx."""
    dtype = compute_dtype(gy, x, weight, bias, gate, gtotal)
    gy, x = gy.contiguous(), x.contiguous()
    gate = None if gate is None else gate.contiguous()
    gtotal = None if gtotal is None else gtotal.contiguous()
    wide_weight, wide_bias = dense(weight, dtype), dense(bias, dtype)
    dx = torch.empty_like(x)
    dgate = None if gate is None else torch.empty_like(gate)
    dweight = None if wide_weight is None else torch.empty_like(wide_weight)
    dbias = None if wide_bias is None else torch.empty_like(wide_bias)
    # fmt: off
    native.call("layer_norm_backward", _ARGUMENTS.pack(
        *_sizes(x, dtype, centred), eps, address(wide_weight), address(wide_bias),
        *typed(x), *ABSENT, *typed(gate), *ABSENT, *typed(gy), *typed(gtotal), *typed(dx), *typed(dgate),
        address(dweight), address(dbias),
    ))
    # fmt: on
    return dx, dweight, dbias, dgate


def add_backward(
    gsum: Tensor | None, gy: Tensor, total: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradient of the sum (which is that of x and of branch), dweight, dbias."""
    return backward(gy, total, weight, bias, None, eps, gsum)[:3]
