"""The depthwise 3x3 convolution of the mixers and position encodings: bias, activation and residual in one pass.

y = act(bias + weight * x),   zero padding 1, stride 1;   x + y with `residual`
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import checks
from vssm.ops.depthwise import core, reference
from vssm.ops.operator import Operator
from vssm.ops.tensors import MAP

__all__ = ["depthwise_conv3x3"]


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool) -> Tensor:
    y = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
    y = F.silu(y) if act == "silu" else y
    return x + y if residual else y


def _portable(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool) -> Tensor:
    """The same with what follows the convolution on the NHWC map: runtimes then turn the map in the convolution."""
    y = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1]).permute(0, 2, 3, 1)
    y = F.silu(y) if act == "silu" else y
    y = x.permute(0, 2, 3, 1) + y if residual else y
    return y.permute(0, 3, 1, 2)


_depthwise = Operator(
    "depthwise_conv3x3(Tensor x, Tensor weight, Tensor? bias, str act, bool residual) -> Tensor",
    shape=lambda x, *_: x.shape,
    reference=reference.depthwise_conv3x3,
    portable=_portable,
    plain=_plain,
    core=core,
    triton="vssm.ops.depthwise.triton",
    result="first",
    order=MAP,
    gradient_orders={"x": MAP},
    macs=lambda x, *_: {"conv": 9 * torch.Size(x).numel()},
    inlines="export",
)


def depthwise_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none", residual: bool = False
) -> Tensor:
    """Convolve every channel with its own 3x3 kernel (cross-correlation, as torch does).

    Args:
        x: (B, C, H, W), any strides, channels_last memory fastest; float32, float64, bfloat16 or float16.
        weight: (C, 1, 3, 3), any supported dtype.
        bias: (C,), or None.
        act: "none" or "silu".
        residual: add x to the result.

    Returns:
        Like x, dtype of x, in channels_last memory. Arithmetic is in at least float32.

    Raises:
        ValueError: an unknown act, or a shape, dtype or device that does not fit; the message names the argument.

    The backward keeps x only and recomputes the value before the activation. Cost: 9 B C H W multiply-adds.
    """
    if torch.jit.is_scripting():
        return torch.ops.vssm.depthwise_conv3x3(x, weight, bias, act, residual, "")
    else:
        _check(x, weight, bias, act)
        return _depthwise(x, weight, bias, act, residual)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> None:
    checks.activation(act, "none", "silu")
    if x.dim() != 4:
        raise ValueError(f"x must be (B, C, H, W), got {tuple(x.shape)}; permute an NHWC map with .permute(0, 3, 1, 2)")
    if weight.dim() != 4 or tuple(weight.shape) != (x.shape[1], 1, 3, 3):
        raise ValueError(
            f"weight must be ({x.shape[1]}, 1, 3, 3) for x {tuple(x.shape)}, got {tuple(weight.shape)}; "
            "the channels of x are its dim 1"
        )
    checks.per_channel("bias", bias, x.shape[1])
    checks.not_empty(x)
    checks.floating(x=x, weight=weight, bias=bias)
    checks.same_device(x=x, weight=weight, bias=bias)
