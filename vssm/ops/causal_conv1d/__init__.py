"""The causal depthwise convolution before the scan of Mamba and Vim, forward or backward in time, with its activation.

y_t = act(bias + sum_i weight_i x_{t-W+1+i}),   zeros before the sequence;   with `reverse` time runs from the end
"""

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.causal_conv1d import op as _op  # noqa: F401  (registers the operators)
from vssm.ops.causal_conv1d import reference, torch_path
from vssm.ops.checks import floating, same_device
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import call, check_per_channel, prefers_plain, to

__all__ = ["causal_conv1d"]

ACTIVATIONS = ("none", "silu")


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none", reverse: bool = False
) -> Tensor:
    """Convolve every channel of a sequence with its own kernel that sees the present and the past.

    Args:
        x: (B, C, L), any strides, the memory of (B, L, C) fastest; float32, float64, bfloat16 or float16.
        weight: (C, W), the last tap meets the step itself; any supported dtype. Mamba's W is 4.
        bias: (C,), or None.
        act: "none" or "silu".
        reverse: the past is what comes later in x: equal to flipping x, convolving and flipping back.

    Returns:
        (B, C, L) like x in dtype, in the memory of (B, L, C). Arithmetic is in at least float32.

    Raises:
        ValueError: an unknown act, or a shape, dtype or device that does not fit; the message names the argument.

    Mamba (arXiv 2312.00752), figure 3. The backward keeps x only. Cost: W B C L multiply-adds.
    """
    if torch.jit.is_scripting():
        return torch.ops.vssm.causal_conv1d(x, weight, bias, act, reverse, "")
    else:
        _check(x, weight, bias, act)
        path = dispatch.requested()
        if path == "reference":
            wide, wide_weight, wide_bias = to(at_least_float32(x, weight, bias), x, weight, bias)
            return reference.causal_conv1d(wide, wide_weight, wide_bias, act, reverse).to(x.dtype)
        if prefers_plain(path) and torch.compiler.is_exporting():
            return torch_path.forward(x, weight, bias, act, reverse)
        return call(torch.ops.vssm.causal_conv1d.default, x, weight, bias, act, reverse, path)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown act {act!r}: choose one of {', '.join(ACTIVATIONS)}")
    if x.dim() != 3:
        raise ValueError(f"x must be (B, C, L), got {tuple(x.shape)}; transpose a (B, L, C) sequence with .mT")
    if x.shape[2] == 0:
        raise ValueError(f"x has no values to compute with: {tuple(x.shape)}; L must be at least 1")
    if weight.dim() != 2 or weight.shape[0] != x.shape[1] or weight.shape[1] < 1:
        raise ValueError(f"weight must be ({x.shape[1]}, W) for x {tuple(x.shape)}, got {tuple(weight.shape)}")
    check_per_channel("bias", bias, x.shape[1])
    floating(x=x, weight=weight, bias=bias)
    same_device(x=x, weight=weight, bias=bias)
