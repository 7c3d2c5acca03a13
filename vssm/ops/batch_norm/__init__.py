"""Batch normalisation in training with what follows it in one operator: ReLU, a residual, a linear layer.

    batch_norm          y = act((x - mean) / sqrt(var + eps) * weight + bias) + residual
    batch_norm_linear   batch_norm(x) W'

Batch Normalization (arXiv 1502.03167), algorithm 1. Both also move the running statistics, as
`torch.nn.functional.batch_norm` does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.batch_norm import op as _op  # noqa: F401  (registers the operators)
from vssm.ops.batch_norm import reference
from vssm.ops.checks import same_device
from vssm.ops.pointwise import check_per_channel, prefers_plain

__all__ = ["batch_norm", "batch_norm_linear"]

ACTIVATIONS = ("none", "relu")


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Normalise every channel by its mean and variance over the batch.

    Args:
        x: (..., C) float32, float64, bfloat16 or float16; more than one value per channel.
        running_mean, running_var: (C,), moved in place by `momentum` towards the mean and the unbiased variance; or
            None.
        weight, bias: (C,).
        eps: added to the variance.
        act: "none" or "relu".
        residual: like x, added last, or None.

    Returns:
        Like x, the dtype that `torch.nn.functional.batch_norm` would give (plus the residual).

    Raises:
        ValueError: an unknown act, or shapes or devices that do not fit; the message names the argument.

    In float32 and float64 on the CPU core, nothing is kept for the backward but x. Elsewhere, under autocast and in
    compiled graphs this is the plain composition.
    """
    _check(x, weight, bias, act)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must have the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}")
    same_device(x=x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias, residual=residual)
    if _is_plain(x, running_mean, weight, bias, residual):
        return _composed(x, running_mean, running_var, weight, bias, momentum, eps, act, residual)
    path = dispatch.requested()
    y, mean, var = torch.ops.vssm.batch_norm(x, weight, bias, residual, act, eps, path)
    _move(x, running_mean, running_var, mean, var, momentum)
    return y


def batch_norm_linear(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "none",
) -> Tensor:
    """`batch_norm` and a linear layer without bias, the normalised rows only ever in the cache.

    Args:
        weight: (C', C).
        the others: as in `batch_norm`.

    Returns:
        (..., C'), the dtype that the composition would give.

    Raises:
        ValueError: an unknown act, or shapes or devices that do not fit; the message names the argument.

    The backward normalises x once more.
    """
    _check(x, norm_weight, norm_bias, act)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"weight must be (C', C) with C = {x.shape[-1]} as in x, got {tuple(weight.shape)}")
    norm = {
        "running_mean": running_mean,
        "running_var": running_var,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
    }
    same_device(x=x, **norm, weight=weight)
    if _is_plain(x, running_mean, norm_weight, norm_bias, weight):
        y = _composed(x, running_mean, running_var, norm_weight, norm_bias, momentum, eps, act, None)
        return F.linear(y, weight)
    path = dispatch.requested()
    y, mean, var = torch.ops.vssm.batch_norm_linear(x, norm_weight, norm_bias, weight, act, eps, path)
    _move(x, running_mean, running_var, mean, var, momentum)
    return y


def _check(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown act {act!r}: choose one of {', '.join(ACTIVATIONS)}")
    if x.dim() == 0 or x.numel() <= x.shape[-1]:
        raise ValueError(f"x must be (..., C) with more than one value per channel, got {tuple(x.shape)}")
    check_per_channel("weight", weight, x.shape[-1])
    check_per_channel("bias", bias, x.shape[-1])


def _is_plain(x: Tensor, *others: Tensor | None) -> bool:
    path = dispatch.requested()
    return (
        prefers_plain(path)
        or path == "reference"
        or x.dtype not in (torch.float32, torch.float64)
        or any(t is not None and t.dtype != x.dtype for t in others)
        or dispatch.choose("batch_norm", x, path) != "core"
        or torch.is_autocast_enabled(x.device.type)  # after the choice: the meta device has no autocast to ask for
    )


def _composed(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
    eps: float,
    act: str,
    residual: Tensor | None,
) -> Tensor:
    if dispatch.requested() == "reference":
        y, mean, var = reference.batch_norm(x, weight, bias, None, act, eps)
        _move(x, running_mean, running_var, mean, var, momentum)
    else:
        y = F.batch_norm(x.movedim(-1, 1), running_mean, running_var, weight, bias, True, momentum, eps).movedim(1, -1)
        y = F.relu(y) if act == "relu" else y
    return y if residual is None else residual + y


@torch.no_grad()
def _move(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, momentum: float
) -> None:
    if running_mean is None or running_var is None:
        return
    rows = x.numel() // x.shape[-1]
    running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
    running_var.mul_(1 - momentum).add_(var, alpha=momentum * rows / (rows - 1))
