"""The linear layer with what follows it in one pass, y = act(x W' + b) + residual."""

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.checks import same_device
from vssm.ops.linear import core, reference
from vssm.ops.linear import op as _op  # noqa: F401  (registers the operator)
from vssm.ops.pointwise import call, check_per_channel, prefers_plain

__all__ = ["ACTIVATIONS", "linear"]

ACTIVATIONS = ("none", "gelu", "silu", "relu")


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none", residual: Tensor | None = None
) -> Tensor:
    """A linear layer, an activation, an addition.

    Args:
        x: (..., C) float32, float64, bfloat16 or float16.
        weight: (C', C).
        bias: (C',) or None.
        act: "none", "gelu" (the exact form), "silu" or "relu".
        residual: (..., C'), added last, or None.

    Returns:
        (..., C'), the dtype that `torch.nn.functional.linear` would give, under autocast too.

    Raises:
        ValueError: an unknown act, or shapes or devices that do not fit; the message names the argument.

    In float32 inference on an x86 CPU with AVX2 or AVX-512 this is one pass of the core. Elsewhere, in training, under
    autocast and in compiled graphs it is the plain composition.
    """
    if torch.jit.is_scripting():
        return reference.linear(x, weight, bias, act, residual)
    else:
        _check(x, weight, bias, act, residual)
        path = dispatch.requested()
        plain = (
            torch.is_grad_enabled()
            or prefers_plain(path)
            or not core.fits(x, weight, bias, residual)
            or dispatch.choose("linear", x, path) != "core"
            or torch.is_autocast_enabled(x.device.type)  # after the choice: the meta device has no autocast to ask for
        )
        if plain:
            return reference.linear(x, weight, bias, act, residual)
        return call(torch.ops.vssm.linear.default, x, weight, bias, act, residual, path)


def _check(x, weight, bias, act, residual) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown act {act!r}: choose one of {', '.join(ACTIVATIONS)}")
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must be (..., C) and weight (C', C) with the same C, got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    check_per_channel("bias", bias, weight.shape[0])
    if residual is not None and residual.shape != (*x.shape[:-1], weight.shape[0]):
        raise ValueError(
            f"residual must be {(*x.shape[:-1], weight.shape[0])} like the result, got {tuple(residual.shape)}"
        )
    same_device(x=x, weight=weight, bias=bias, residual=residual)
