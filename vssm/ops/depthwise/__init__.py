"""The depthwise 3x3 convolution of the mixers and position encodings: bias, activation and residual in one pass.

y = act(bias + weight * x),   zero padding 1, stride 1;   x + y with `residual`
"""

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.checks import floating, not_empty, same_device
from vssm.ops.depthwise import op as _op  # noqa: F401  (registers the operators)
from vssm.ops.depthwise import reference, torch_path
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import call, check_per_channel, prefers_plain

__all__ = ["depthwise_conv3x3"]

ACTIVATIONS = ("none", "silu")


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
        path = dispatch.requested()
        if path == "reference":
            dtype = at_least_float32(x, weight, bias)
            wide_bias = None if bias is None else bias.to(dtype)
            return reference.depthwise_conv3x3(x.to(dtype), weight.to(dtype), wide_bias, act, residual).to(x.dtype)
        if prefers_plain(path) and torch.compiler.is_exporting():
            return torch_path.forward(x, weight, bias, act, residual)
        return call(torch.ops.vssm.depthwise_conv3x3.default, x, weight, bias, act, residual, path)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown act {act!r}: choose one of {', '.join(ACTIVATIONS)}")
    if x.dim() != 4:
        raise ValueError(f"x must be (B, C, H, W), got {tuple(x.shape)}; permute an NHWC map with .permute(0, 3, 1, 2)")
    if weight.dim() != 4 or tuple(weight.shape) != (x.shape[1], 1, 3, 3):
        raise ValueError(
            f"weight must be ({x.shape[1]}, 1, 3, 3) for x {tuple(x.shape)}, got {tuple(weight.shape)}; "
            "the channels of x are its dim 1"
        )
    check_per_channel("bias", bias, x.shape[1])
    not_empty(x)
    floating(x=x, weight=weight, bias=bias)
    same_device(x=x, weight=weight, bias=bias)
