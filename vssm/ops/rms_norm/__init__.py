"""Root mean square normalisation over the last dim: y = x / sqrt(mean(x^2) + eps) * weight.

Root Mean Square Layer Normalization (arXiv 1910.07467), equation 4: the norm of Vim.
"""

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.checks import floating, same_device
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import call, check_per_channel, prefers_plain, result_dtype, to
from vssm.ops.rms_norm import op as _op  # noqa: F401  (registers the operators)
from vssm.ops.rms_norm import reference, torch_path

__all__ = ["rms_norm"]


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
        path = dispatch.requested()
        if path == "reference":
            wide, wide_weight = to(at_least_float32(x, weight), x, weight)
            return reference.rms_norm(wide, wide_weight, eps).to(result_dtype(x, weight))
        if prefers_plain(path):
            return torch_path.forward(x, weight, eps)
        return call(torch.ops.vssm.rms_norm.default, x, weight, eps, path)


def _check(x: Tensor, weight: Tensor | None) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (..., C) with C of at least 1, got {tuple(x.shape)}")
    check_per_channel("weight", weight, x.shape[-1])
    floating(x=x, weight=weight)
    same_device(x=x, weight=weight)
