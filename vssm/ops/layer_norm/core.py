"""Layer normalisation on the compiled core (csrc/kernels/layer_norm.cpp): one call on contiguous rows, no autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.native import ABSENT, typed
from vssm.ops.tensors import core_dtype, dense, row, widest_dtype


def _sizes(x: Tensor, dtype: torch.dtype, centred: bool, eps: float) -> tuple[int | float, ...]:
    """The head of struct LayerNormArgs."""
    channels = x.shape[-1]
    return dtype is torch.float64, x.numel() // channels, channels, centred, float(eps)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None, eps: float, centred: bool = True
) -> Tensor:
    """See the public function; not `centred` it is `rms_norm`."""
    dtype = core_dtype(x, weight, bias, gate)
    x, gate = x.contiguous(), None if gate is None else gate.contiguous()
    y = torch.empty_like(x, dtype=widest_dtype(x, weight, bias, gate))
    sizes, affine = _sizes(x, dtype, centred, eps), (*typed(row(weight)), *typed(row(bias)))
    native.call("layer_norm_forward", *sizes, *affine, *typed(x), *typed(gate), *typed(y), *ABSENT, *ABSENT, 0, 0)
    return y


def backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    gate: Tensor | None,
    eps: float,
    centred: bool = True,
) -> tuple[Tensor | None, ...]:
    """dx, dweight, dbias, dgate; None where the input is absent."""
    dtype = core_dtype(gy, x, weight, bias, gate)
    gy, x, gate = gy.contiguous(), x.contiguous(), None if gate is None else gate.contiguous()
    affine = dense(weight, dtype), dense(bias, dtype)
    dx, dgate, dweight, dbias = (None if t is None else torch.empty_like(t) for t in (x, gate, *affine))
    sizes, maps = _sizes(x, dtype, centred, eps), (*typed(x), *typed(gate), *typed(gy), *typed(dx), *typed(dgate))
    native.call("layer_norm_backward", *sizes, *typed(affine[0]), *typed(affine[1]), *maps, dweight, dbias)
    return dx, dweight, dbias, dgate
