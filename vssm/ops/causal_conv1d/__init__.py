"""The causal depthwise convolution before the scan of Mamba and Vim, forward or backward in time, with its activation.

y_t = act(bias + sum_i weight_i x_{t-W+1+i}),   zeros before the sequence;   with `reverse` time runs from the end
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import checks
from vssm.ops.causal_conv1d import core, reference
from vssm.ops.operator import Operator
from vssm.ops.tensors import SEQUENCE

__all__ = ["causal_conv1d"]


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool) -> Tensor:
    """Time that runs backwards is a padding on the other side and the taps the other way round."""
    past = weight.shape[1] - 1
    padded, taps = F.pad(x, (0, past) if reverse else (past, 0)), weight.flip(1) if reverse else weight
    y = F.conv1d(padded, taps.unsqueeze(1), bias, groups=x.shape[1])
    return F.silu(y) if act == "silu" else y


def _limit(x: Tensor, weight: Tensor, *_) -> str | None:
    if x.device.type != "cpu" or weight.shape[1] in core.WIDTHS:
        return None
    return f"it has kernels of width {', '.join(map(str, core.WIDTHS))}, not {weight.shape[1]}"


_causal_conv1d = Operator(
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, str act, bool reverse) -> Tensor",
    shape=lambda x, *_: x.shape,
    reference=reference.causal_conv1d,
    portable=_plain,
    plain=_plain,
    core=core,
    triton="vssm.ops.causal_conv1d.triton",
    result="first",
    order=SEQUENCE,
    gradient_orders={"x": SEQUENCE},
    macs=lambda x, weight, *_: {"conv": torch.Size(x).numel() * weight[1]},
    limit=_limit,
    inlines="export",
)


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
        return _causal_conv1d(x, weight, bias, act, reverse)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> None:
    checks.activation(act, "none", "silu")
    if x.dim() != 3:
        raise ValueError(f"x must be (B, C, L), got {tuple(x.shape)}; transpose a (B, L, C) sequence with .mT")
    if x.shape[2] == 0:
        raise ValueError(f"x is empty: {tuple(x.shape)}; L must be at least 1")
    if weight.dim() != 2 or weight.shape[0] != x.shape[1] or weight.shape[1] < 1:
        raise ValueError(f"weight must be ({x.shape[1]}, W) for x {tuple(x.shape)}, got {tuple(weight.shape)}")
    checks.per_channel("bias", bias, x.shape[1])
    checks.floating(x=x, weight=weight, bias=bias)
    checks.same_device(x=x, weight=weight, bias=bias)
