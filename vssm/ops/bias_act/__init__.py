"""Bias and activation in one pass: the epilogue of a matrix product.

y = act(x + bias),   act one of gelu (exact, with erf), silu, relu
"""

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.bias_act import op as _op  # noqa: F401  (registers the operators)
from vssm.ops.bias_act import reference, torch_path
from vssm.ops.checks import floating, same_device
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import call, check_per_channel, prefers_plain

__all__ = ["ACTIVATIONS", "bias_act"]

ACTIVATIONS = ("gelu", "silu", "relu")


def bias_act(x: Tensor, bias: Tensor | None = None, act: str = "gelu") -> Tensor:
    """Add a bias along the last dim and apply an activation.

    Args:
        x: (..., C), any strides; float32, float64, bfloat16 or float16.
        bias: (C,), any supported dtype, or None.
        act: "gelu" (the exact form), "silu" or "relu".

    Returns:
        Like x, contiguous, dtype of x. Arithmetic is in at least float32.

    Raises:
        ValueError: an unknown act, or a shape, dtype or device that does not fit; the message names the argument.

    The backward needs x only (the value before the bias), and sums the bias gradient in the same pass.
    """
    if torch.jit.is_scripting():
        return torch.ops.vssm.bias_act(x, bias, act, "")
    else:
        _check(x, bias, act)
        path = dispatch.requested()
        if path == "reference":
            dtype = at_least_float32(x, bias)
            return reference.bias_act(x.to(dtype), None if bias is None else bias.to(dtype), act).to(x.dtype)
        if prefers_plain(path):
            return torch_path.forward(x, bias, act)
        return call(torch.ops.vssm.bias_act.default, x, bias, act, path)


def _check(x: Tensor, bias: Tensor | None, act: str) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown act {act!r}: choose one of {', '.join(ACTIVATIONS)}")
    if x.dim() == 0:
        raise ValueError("x must be (..., C), got a scalar; give it a channel dim, e.g. x[None]")
    check_per_channel("bias", bias, x.shape[-1])
    floating(x=x, bias=bias)
    same_device(x=x, bias=bias)
