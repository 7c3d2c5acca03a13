"""The causal depthwise convolution on Triton: that of depthwise/triton.py on maps of one row. No autograd."""

import torch
from torch import Tensor

from vssm.ops.depthwise.triton import Taps, run_backward, run_forward
from vssm.ops.tensors import dense


def _taps(width: int, reverse: bool) -> Taps:
    """The last tap is the step itself, the others look back in time."""
    back = [width - 1 - i for i in range(width)]
    return tuple(offset for b in back for offset in (0, b if reverse else -b))


def _weights(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return dense(weight.mT, torch.float32), dense(bias, torch.float32)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool) -> Tensor:
    """See the public function."""
    x = x.mT.contiguous()
    taps, size, y = _taps(weight.shape[1], reverse), (1, x.shape[1]), torch.empty_like(x)
    run_forward(x, *_weights(weight, bias), None, y, taps, size, act == "silu")
    return y.mT


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (memory of (B, L, C)), dweight, dbias."""
    gy, x = gy.mT.contiguous(), x.mT.contiguous()
    taps, size, dx = _taps(weight.shape[1], reverse), (1, x.shape[1]), torch.empty_like(x)
    dtaps, dbias = run_backward(gy, x, *_weights(weight, bias), None, dx, taps, size, act == "silu")
    return dx.mT, dtaps.mT, dbias
