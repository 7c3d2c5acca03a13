"""Layer normalisation with torch's own operators. The backward recomputes the statistics from x."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import result_dtype, to

_aten = torch.ops.aten


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None, eps: float) -> Tensor:
    """See the public function."""
    dtype = x.dtype
    if gate is None and (weight is None or weight.dtype is dtype) and (bias is None or bias.dtype is dtype):
        return F.layer_norm(x.contiguous(), x.shape[-1:], weight, bias, eps).to(dtype)
    out = result_dtype(x, weight, bias, gate)
    x, weight, bias, gate = to(at_least_float32(x, weight, bias, gate), x, weight, bias, gate)
    y = F.layer_norm(x.contiguous(), x.shape[-1:], weight, bias, eps)
    return (y if gate is None else y * F.silu(gate)).to(out)


def backward(
    gy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight, dbias, dgate in the compute dtype; None where the input is absent."""
    dtype = at_least_float32(x, weight, bias, gate)
    gy, x, weight, bias, gate = to(dtype, gy, x, weight, bias, gate)
    shape = x.shape[-1:]
    normed, mean, rstd = _aten.native_layer_norm(x.contiguous(), shape, weight, bias, eps)
    dgate = None
    if gate is not None:
        dgate = _aten.silu_backward(gy * normed, gate)
        gy = gy * F.silu(gate)
    wanted = [True, weight is not None, bias is not None]
    dx, dweight, dbias = _aten.native_layer_norm_backward(gy, x, shape, mean, rstd, weight, bias, wanted)
    return dx, dweight, dbias, dgate


def add_forward(
    x: Tensor, branch: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + branch, layer_norm(x + branch)); the sum in the wider dtype of the two."""
    total = x + branch
    return total, forward(total, weight, bias, None, eps)


def add_backward(
    gsum: Tensor | None, gy: Tensor, total: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradient of the sum (which is that of x and of branch), dweight, dbias."""
    dx, dweight, dbias, _ = backward(gy, total, weight, bias, None, eps)
    if gsum is not None:
        dx = dx + gsum
    return dx, dweight, dbias
