"""Batch normalisation in training with what follows it in one operator: ReLU, a residual, a linear layer.

    batch_norm          y = act((x - mean) / sqrt(var + eps) * weight + bias) + residual
    batch_norm_linear   batch_norm(x) W'

Batch Normalization (arXiv 1502.03167), algorithm 1. Both also move the running statistics, as
`torch.nn.functional.batch_norm` does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import checks, dispatch
from vssm.ops.batch_norm import core, reference
from vssm.ops.operator import Operator

__all__ = ["batch_norm", "batch_norm_linear"]


def _norm_macs(x, *_) -> dict[str, int]:
    """The papers' count, that of torch's own operator with their flags."""
    return {"batch_norm": 5 * torch.Size(x).numel()}


def _normed_linear(x, norm_weight, norm_bias, weight, act, eps) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, var = reference.batch_norm(x, norm_weight, norm_bias, None, act, eps)
    return F.linear(y, weight), mean, var


def _limit(x, *args) -> str | None:
    alike = all(t.dtype is x.dtype for t in args if isinstance(t, Tensor))
    return None if alike and x.dtype in (torch.float32, torch.float64) else "it takes one dtype, float32 or float64"


_batch_norm = Operator(
    "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor? residual, str act, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    shape=lambda x, *_: [x.shape, x.shape[-1:], x.shape[-1:]],
    reference=reference.batch_norm,
    core=core,
    widens=False,
    macs=_norm_macs,
    saved_results=2,
    added=True,
    limit=_limit,
    inlines="compile",
)
_batch_norm_linear = Operator(
    "batch_norm_linear(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, str act, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    shape=lambda x, n, b, weight, *_: [(*x.shape[:-1], weight.shape[0]), x.shape[-1:], x.shape[-1:]],
    reference=_normed_linear,
    core=core,
    prefix="linear_",
    widens=False,
    macs=lambda x, n, b, weight, *_: _norm_macs(x) | {"linear": torch.Size(x).numel() * weight[0]},
    saved_results=2,
    limit=_limit,
    inlines="compile",
)


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
    checks.same_shape("residual", residual, x=x)
    checks.same_device(
        x=x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias, residual=residual
    )
    args = (x, weight, bias, residual, act, eps)
    if dispatch.requested() != "reference" and _batch_norm.is_composed(args, dispatch.requested()):
        y = _composed(x, running_mean, running_var, weight, bias, momentum, eps, act)
        return y if residual is None else residual + y
    y, mean, var = _batch_norm(*args)
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
    checks.same_device(x=x, **norm, weight=weight)
    args = (x, norm_weight, norm_bias, weight, act, eps)
    if dispatch.requested() != "reference" and _batch_norm_linear.is_composed(args, dispatch.requested()):
        return F.linear(_composed(x, running_mean, running_var, norm_weight, norm_bias, momentum, eps, act), weight)
    y, mean, var = _batch_norm_linear(*args)
    _move(x, running_mean, running_var, mean, var, momentum)
    return y


def _check(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> None:
    checks.activation(act, "none", "relu")
    if x.dim() == 0 or x.numel() <= x.shape[-1]:
        raise ValueError(f"x must be (..., C) with more than one value per channel, got {tuple(x.shape)}")
    checks.per_channel("weight", weight, x.shape[-1])
    checks.per_channel("bias", bias, x.shape[-1])


def _composed(x, running_mean, running_var, weight, bias, momentum: float, eps: float, act: str) -> Tensor:
    y = F.batch_norm(x.movedim(-1, 1), running_mean, running_var, weight, bias, True, momentum, eps).movedim(1, -1)
    return F.relu(y) if act == "relu" else y


@torch.no_grad()
def _move(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, momentum: float
) -> None:
    if running_mean is None or running_var is None:
        return
    rows = x.numel() // x.shape[-1]
    running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
    running_var.mul_(1 - momentum).add_(var, alpha=momentum * rows / (rows - 1))
