"""The two-layer perceptron, y = residual + gelu(x W1' + b1) W2' + b2, without its hidden tensor in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.bias_act import bias_act
from vssm.ops.checks import same_device
from vssm.ops.mlp import core, reference
from vssm.ops.mlp import op as _op  # noqa: F401  (registers the operators)
from vssm.ops.pointwise import call, prefers_plain

__all__ = ["mlp"]


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
    if torch.jit.is_scripting():
        return reference.mlp(x, weight1, bias1, weight2, bias2, residual)
    else:
        _check(x, weight1, bias1, weight2, bias2, residual)
        path = dispatch.requested()
        plain = (
            prefers_plain(path)
            or x.dtype not in (torch.float32, torch.float64)
            or x.dtype != weight1.dtype
            or x.numel() == 0
            or (residual is not None and residual.dtype != x.dtype)
            or dispatch.choose("mlp", x, path) != "core"
            or torch.is_autocast_enabled(x.device.type)  # after the choice: the meta device has no autocast to ask for
        )
        if plain:
            return reference.mlp(x, weight1, bias1, weight2, bias2, residual)
        trains = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight1, bias1, weight2, bias2))
        if trains and x.numel() // x.shape[-1] * weight1.shape[0] * x.element_size() < core.RECOMPUTE_BYTES:
            y = F.linear(bias_act(F.linear(x, weight1), bias1, "gelu"), weight2, bias2)
            return y if residual is None else residual + y
        return call(torch.ops.vssm.mlp.default, x, weight1, bias1, weight2, bias2, residual, path)


def _check(x, weight1, bias1, weight2, bias2, residual) -> None:
    if weight1.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight1.shape[1]:
        raise ValueError(
            f"x must be (..., C) and weight1 (H, C) with the same C, got {tuple(x.shape)} and {tuple(weight1.shape)}"
        )
    hidden = weight1.shape[0]
    if weight2.dim() != 2 or weight2.shape[1] != hidden:
        raise ValueError(f"weight2 must be (O, H) with H = {hidden} as in weight1, got {tuple(weight2.shape)}")
    for name, bias, size in (("bias1", bias1, hidden), ("bias2", bias2, weight2.shape[0])):
        if bias.shape != (size,):
            raise ValueError(f"{name} must be ({size},), got {tuple(bias.shape)}")
    if residual is not None and residual.shape != (*x.shape[:-1], weight2.shape[0]):
        raise ValueError(
            f"residual must be {(*x.shape[:-1], weight2.shape[0])} like the result, got {tuple(residual.shape)}"
        )
    same_device(x=x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2, residual=residual)
