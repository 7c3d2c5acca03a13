"""The linear layer with what follows it in one pass, y = act(x W' + b) + residual."""

import torch
from torch import Tensor

from vssm.ops import checks, dispatch, native
from vssm.ops.linear import core, half, reference
from vssm.ops.operator import Operator

__all__ = ["linear"]


def _rule(device: torch.device, dtype: torch.dtype) -> str | None:
    """Measured against MKL (benchmarks/pointwise.py --part linear). Without wide vectors and with other libraries
    behind torch, the library is left its trade."""
    if dtype in half.HALVES:
        return half.PREFERENCE
    if native.isa() in ("avx512", "avx2"):
        return None
    return dispatch.Preference(f"torch's matrix product is as fast with {native.isa()} vectors")


def _limit(x, weight, bias, residual, *_) -> str | None:
    return None if core.fits(x, weight, bias, residual) else "its product takes float32 tensors that are not empty"


_linear = Operator(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str act) -> Tensor",
    shape=lambda x, weight, *_: (*x.shape[:-1], weight.shape[0]),
    reference=reference.linear,
    core=core,
    widens=False,
    inlines="compile",
    macs=lambda x, weight, *_: {"linear": torch.Size(x[:-1]).numel() * weight[0] * weight[1]},
    rule=_rule,
    limit=_limit,
    differentiable=False,
)


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

    In float32 inference on an x86 CPU with AVX2 or AVX-512 this is one pass of the core; in half precision torch's
    product, with the rest in place. In training and in compiled graphs it is the plain composition.
    """
    checks.activation(act, "none", "gelu", "silu", "relu")
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must be (..., C) and weight (C', C) with the same C, got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    checks.per_channel("bias", bias, weight.shape[0])
    checks.shape("residual", residual, (*x.shape[:-1], weight.shape[0]), " like the result")
    checks.same_device(x=x, weight=weight, bias=bias, residual=residual)
    if half.takes(x, weight, bias, residual):
        return half.linear(x, weight, bias, residual, act)
    return _linear(x, weight, bias, residual, act)
