"""The causal convolution with torch's own operators; the backward recomputes the value before the activation.

Time that runs backwards is a padding on the other side and the taps the other way round: nothing is flipped in memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import to

_aten = torch.ops.aten


def _padded(x: Tensor, width: int, reverse: bool) -> Tensor:
    return F.pad(x, (0, width - 1) if reverse else (width - 1, 0))


def _kernel(weight: Tensor, reverse: bool) -> Tensor:
    return (weight.flip(1) if reverse else weight).unsqueeze(1)


def _convolve(padded: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(padded.device.type, enabled=False):
        return F.conv1d(padded, kernel, bias, groups=padded.shape[1])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool) -> Tensor:
    """See the public function."""
    wide, weight, bias = to(at_least_float32(x, weight, bias), x, weight, bias)
    y = _convolve(_padded(wide, weight.shape[1], reverse), _kernel(weight, reverse), bias)
    if act == "silu":
        y = F.silu(y)
    return y.to(x.dtype).mT.contiguous().mT


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (memory of (B, L, C)), dweight, dbias in the compute dtype."""
    gy, x, weight, bias = to(at_least_float32(x, weight, bias), gy, x, weight, bias)
    width, length = weight.shape[1], x.shape[2]
    padded, kernel = _padded(x, width, reverse), _kernel(weight, reverse)
    g = _aten.silu_backward(gy, _convolve(padded, kernel, bias)) if act == "silu" else gy
    dpadded, dkernel, dbias = _aten.convolution_backward(
        g, padded, kernel, [x.shape[1]], [1], [0], [1], False, [0], x.shape[1], [True, True, bias is not None]
    )
    dx = dpadded[..., :length] if reverse else dpadded[..., width - 1 :]
    dweight = dkernel.squeeze(1)
    return dx.mT.contiguous().mT, dweight.flip(1) if reverse else dweight, dbias
