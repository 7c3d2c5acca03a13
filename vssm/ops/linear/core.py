"""The linear layer on the compiled core (csrc/kernels/linear.cpp): float32, no autograd."""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.native import ACTIVATIONS

FEW_ROWS = 256  # few_rows of the kernel, which below it packs x anyway, in either order
_LANES = 16  # a packed weight is padded to whole vectors of the widest instruction set


def fits(*tensors: Tensor | None) -> bool:
    """Whether the kernel takes these tensors: float32, and not empty."""
    return all(t is None or (t.dtype is torch.float32 and t.numel() > 0) for t in tensors)


def is_ahead(*tensors: Tensor | None) -> bool:
    """Whether the kernel takes these tensors and is faster than torch's product, with the vectors of this machine."""
    return fits(*tensors) and native.isa() in ("avx512", "avx2")


def pack(weight: Tensor) -> Tensor:
    """The weight in the order of the kernel, for many calls of `forward` in a row. Not to be kept: it goes stale."""
    weight = weight.contiguous()
    out, inner = weight.shape
    packed = weight.new_empty(-(-out // _LANES) * _LANES * inner)
    native.call("linear_pack", 0, inner, out, ACTIVATIONS["none"], 0, 0, weight, 0, 0, 0, packed, 0)
    return packed


def channels_last_weight(weight: Tensor) -> Tensor:
    """A convolution's weight (C', C, k, k), contiguous float32, in channels_last memory. Made anew at each call."""
    out, channels, height, width = weight.shape
    y = weight.new_empty(out, height, width, channels)
    native.call("swap_channels", channels, height * width, out, ACTIVATIONS["none"], 0, 0, weight, 0, 0, 0, y, 0)
    return y.permute(0, 3, 1, 2)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str,
    out: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """See the public function. `out` receives the result: contiguous, and then it may be the residual itself, or, with
    fewer than FEW_ROWS rows and no residual, a matrix of columns."""
    weight = weight.contiguous()
    channels, inner = weight.shape
    rows = x.numel() // inner
    if x.dim() == 2 and x.stride(1) == 1:  # rows may lie apart
        stride = x.stride(0)
    elif x.dim() == 2 and x.stride(0) == 1 and x.stride(1) > 0 and rows < FEW_ROWS and packed is None:  # or be columns
        stride = -x.stride(1)
    else:
        x, stride = x.contiguous(), inner
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = x.new_empty((*x.shape[:-1], channels)) if out is None else out
    columns = 0 if y.is_contiguous() else y.stride(1)
    sizes = (rows, inner, channels, ACTIVATIONS[act], stride)
    native.call("linear_forward", *sizes, x, weight, packed, bias, residual, y, columns)
    return y
