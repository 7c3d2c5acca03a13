"""The depthwise 3x3 convolution with torch's own operators; the backward recomputes the value before the activation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import to

_aten = torch.ops.aten


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool) -> Tensor:
    """See the public function."""
    wide, weight, bias = to(at_least_float32(x, weight, bias), x, weight, bias)
    y = _convolve(wide, weight, bias)
    if act == "silu":
        y = F.silu(y)
    if residual:
        y = wide + y
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (channels_last memory), dweight, dbias in the compute dtype."""
    gy, x, weight, bias = to(at_least_float32(x, weight, bias), gy, x, weight, bias)
    g = gy
    if act == "silu":
        g = _aten.silu_backward(gy, _convolve(x, weight, bias))
    C = x.shape[1]
    dx, dweight, dbias = _aten.convolution_backward(
        g, x, weight, [C], [1, 1], [1, 1], [1, 1], False, [0, 0], C, [True, True, bias is not None]
    )
    if residual:
        dx = dx + gy
    return dx.contiguous(memory_format=torch.channels_last), dweight, dbias
