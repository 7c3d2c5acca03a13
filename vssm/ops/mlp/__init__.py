"""The MLP, y = residual + gelu(x W1' + b1) W2' + b2, without its hidden tensor in memory."""

import torch
from torch import Tensor

from vssm.ops import checks, dispatch
from vssm.ops.linear import half
from vssm.ops.mlp import core, reference
from vssm.ops.operator import Operator

__all__ = ["mlp"]


def _macs(x, weight1, bias1, weight2, *_) -> dict[str, int]:
    return {"linear": torch.Size(x[:-1]).numel() * (weight1[0] * weight1[1] + weight2[0] * weight2[1])}


def _rule(device: torch.device, dtype: torch.dtype) -> str | None:
    return half.PREFERENCE if dtype in half.HALVES else None


def _limit(x, weight1, bias1, weight2, bias2, residual) -> str | None:
    alike = all(t.dtype is x.dtype for t in (weight1, bias1, weight2, bias2)) and (
        residual is None or residual.dtype is x.dtype
    )
    if alike and x.dtype in (torch.float32, torch.float64) and x.numel() > 0:
        return None
    return "its products take tensors of one dtype, float32 or float64, that are not empty"


_mlp = Operator(
    "mlp(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor? residual) -> Tensor",
    shape=lambda x, weight1, bias1, weight2, *_: (*x.shape[:-1], weight2.shape[0]),
    reference=reference.mlp,
    core=core,
    widens=False,
    macs=_macs,
    backward_macs=2.5,  # the first product once more, to recompute the hidden rows
    added=True,
    rule=_rule,
    limit=_limit,
    inlines="compile",
)


def mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, residual: Tensor | None = None
) -> Tensor:
    """Two linear layers with the exact GELU between them.

    Args:
        x: (..., C) float32, float64, bfloat16 or float16.
        weight1, bias1: (H, C) and (H,).
        weight2, bias2: (O, H) and (O,).
        residual: (..., O), added to the result, or None.

    Returns:
        (..., O), the dtype that `torch.nn.functional.linear` would give, under autocast too.

    Raises:
        ValueError: shapes or devices that do not fit; the message names the argument.

    On the CPU core both products run chunk by chunk of rows, so that hidden rows stay in the cache; for a large
    hidden tensor the backward recomputes them, and nothing of size rows x H is kept. Elsewhere, under autocast and in
    compiled graphs this is the plain composition.
    """
    _check(x, weight1, bias1, weight2, bias2, residual)
    args = (x, weight1, bias1, weight2, bias2, residual)
    if half.takes(x, *args[1:]):
        return half.mlp(*args)
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in args[:-1])
    small = x.numel() // x.shape[-1] * weight1.shape[0] * x.element_size() < core.RECOMPUTE_BYTES
    if trains and small and not dispatch.requested():
        return reference.mlp(*args)
    return _mlp(*args)


def _check(x, weight1, bias1, weight2, bias2, residual) -> None:
    if weight1.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight1.shape[1]:
        raise ValueError(
            f"x must be (..., C) and weight1 (H, C) with the same C, got {tuple(x.shape)} and {tuple(weight1.shape)}"
        )
    hidden = weight1.shape[0]
    if weight2.dim() != 2 or weight2.shape[1] != hidden:
        raise ValueError(f"weight2 must be (O, H) with H = {hidden} as in weight1, got {tuple(weight2.shape)}")
    checks.shape("bias1", bias1, (hidden,))
    checks.shape("bias2", bias2, weight2.shape[:1])
    checks.shape("residual", residual, (*x.shape[:-1], weight2.shape[0]), " like the result")
    checks.same_device(x=x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2, residual=residual)
