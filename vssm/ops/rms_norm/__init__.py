"""Root mean square normalisation over the last dim: y = x / sqrt(mean(x^2) + eps) * weight.

Root Mean Square Layer Normalization (arXiv 1910.07467), equation 4: the norm of Vim.
"""

import torch
from torch import Tensor

from vssm.ops.checks import floating, per_channel, same_device
from vssm.ops.operator import Operator
from vssm.ops.rms_norm import core, reference

__all__ = ["rms_norm"]

_rms_norm = Operator(
    "rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor",
    shape=lambda x, *_: x.shape,
    reference=reference.rms_norm,
    core=core,
    triton="vssm.ops.rms_norm.triton",
    macs=lambda x, *_: {"rms_norm": 4 * torch.Size(x).numel()},
    inlines="compile",
)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Divide each row by its root mean square.

    Args:
        x: (..., C), any strides; float32, float64, bfloat16 or float16.
        weight: (C,), or None. May be wider than x.
        eps: added to the mean square.

    Returns:
        (..., C) contiguous, in the wider dtype of x and weight. Arithmetic is in at least float32.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; the message names the argument.
    """
    if torch.jit.is_scripting():
        return torch.ops.vssm.rms_norm(x, weight, eps, "")
    else:
        _check(x, weight)
        return _rms_norm(x, weight, eps)


def _check(x: Tensor, weight: Tensor | None) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (..., C) with C of at least 1, got {tuple(x.shape)}")
    per_channel("weight", weight, x.shape[-1])
    floating(x=x, weight=weight)
    same_device(x=x, weight=weight)
