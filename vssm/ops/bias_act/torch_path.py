"""Bias and activation with torch's own operators; the backward starts from the saved input, before the bias."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.library import at_least_float32

_aten = torch.ops.aten
_FORWARD = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def _backward_of(act: str, gy: Tensor, x: Tensor) -> Tensor:
    if act == "gelu":
        return _aten.gelu_backward(gy, x)
    if act == "silu":
        return _aten.silu_backward(gy, x)
    return _aten.threshold_backward(gy, x, 0)


def forward(x: Tensor, bias: Tensor | None, act: str) -> Tensor:
    """See the public function."""
    wide = x.to(at_least_float32(x, bias))
    return _FORWARD[act](wide if bias is None else wide + bias).to(x.dtype)


def backward(gy: Tensor, x: Tensor, bias: Tensor | None, act: str) -> tuple[Tensor, Tensor | None]:
    """dx and dbias in the compute dtype."""
    dtype = at_least_float32(x, bias)
    wide = x.to(dtype)
    dx = _backward_of(act, gy.to(dtype), wide if bias is None else wide + bias)
    return dx, None if bias is None else dx.flatten(0, -2).sum(0) if dx.dim() > 1 else dx
