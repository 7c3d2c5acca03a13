"""From a continuous state equation to steps: h' = A h + B u over a step of length dt, u held.

    euler   h_t = exp(dt A) h_{t-1} + dt B u_t                      what Mamba's code and all released weights use
    zoh     h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A B u_t     zero-order hold, the exact solution

VMamba (arXiv 2401.10166), equation 6 in appendix A, is the first form, there called the first-order Taylor expansion of
the second, which is Mamba's (arXiv 2312.00752, equation 4). The two differ by the factor
phi(dt A) = (exp(dt A) - 1) / (dt A) on u, which is 1 at dt A = 0 and falls to -1 / (dt A) for long steps. The kernels
know the first form; the second is the first one on inputs multiplied by phi, one state at a time, as phi depends on the
state.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.operator import Operator, is_transformed

DISCRETIZATIONS = ("euler", "zoh")


def is_zoh(discretization: str) -> bool:
    """Whether B enters by zero-order hold; ValueError for what is no discretization."""
    if discretization not in DISCRETIZATIONS:
        raise ValueError(f"unknown discretization {discretization!r}: choose one of {', '.join(DISCRETIZATIONS)}")
    return discretization == "zoh"


def evaluate_zoh(operator: Operator, composed: Callable[..., Any], args: Sequence[Any]) -> Any:
    """An operator with zero-order hold: its reference, or its form for export, where that is demanded, else `composed`,
    which calls the operator as it is."""
    exact = operator.forms.get(dispatch.requested())
    function = partial(composed, operator) if exact is None else partial(exact, zoh=True)
    return operator.evaluate(function, args)


def phi(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z, and 1 at z = 0, its derivative exact to rounding everywhere; z float32 or float64."""
    if not torch.compiler.is_compiling() and is_transformed((z,)):
        near, far = _split(z)
        return torch.where(near, _series(z, lambda k: 1 / math.factorial(k + 1)), torch.expm1(far) / far)
    return _Phi.apply(z)  # pyright: ignore[reportReturnType]


class _Phi(torch.autograd.Function):
    """Only z is kept: what autograd would keep of the expression is four maps."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.where(z == 0, 1, torch.expm1(z) / z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return g * _phi_slope(z)


# Nearer to 0 than this the difference in the derivative loses digits, and so many terms of its series have them all.
_NEAR = 0.5
_TERMS = {torch.float32: 8, torch.float64: 15}


def _phi_slope(z: Tensor) -> Tensor:
    """(exp(z) - phi(z)) / z = sum over k of z^k (k + 1) / (k + 2)!"""
    near, far = _split(z)
    series = _series(z, lambda k: (k + 1) / math.factorial(k + 2))
    return torch.where(near, series, (torch.exp(far) - torch.expm1(far) / far) / far)


def _split(z: Tensor) -> tuple[Tensor, Tensor]:
    """Where z is near 0, and z where it is not: elsewhere 1, whose quotients have derivatives."""
    near = z.abs() < _NEAR
    return near, torch.where(near, 1, z)


def _series(z: Tensor, coefficient: Callable[[int], float]) -> Tensor:
    series = torch.zeros_like(z)
    for k in reversed(range(_TERMS[z.dtype])):
        series = series * z + coefficient(k)
    return series
