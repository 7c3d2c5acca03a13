"""Layer normalisation over the last dim, with what a state space model does around it folded in.

    layer_norm       y = (x - mean) / sqrt(var + eps) * weight + bias,  times silu(gate) if a gate is given
    add_layer_norm   s = x + branch,  y = layer_norm(s);  both are returned

Layer Normalization (arXiv 1607.06450), equation 3; the gate is that of Mamba's output (arXiv 2312.00752, figure 3).
"""

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.checks import floating, same_device
from vssm.ops.layer_norm import op as _op  # noqa: F401  (registers the operators)
from vssm.ops.layer_norm import reference, torch_path
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import call, check_per_channel, prefers_plain, result_dtype, to

__all__ = ["add_layer_norm", "layer_norm"]

# Below this many elements torch's own operator wins: a call of an operator defined in Python costs more than the core
# saves on a small map (`python benchmarks/pointwise.py --part layer_norm`).
SMALL = 1 << 16


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    gate: Tensor | None = None,
) -> Tensor:
    """Normalise the last dim of x; with a gate, return the result times silu(gate).

    Args:
        x: (..., C), any strides; float32, float64, bfloat16 or float16.
        weight, bias: (C,), or None. May be wider than x.
        eps: added to the variance.
        gate: like x in shape, any supported dtype, or None.

    Returns:
        (..., C) contiguous, in the widest dtype among the inputs: float32 weights lift half-precision maps to
        float32, which is what torch.nn.LayerNorm does under autocast on GPUs. Without weights, autocast lifts as well.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; the message names the argument.

    Statistics and arithmetic are in at least float32. The backward recomputes the statistics.
    """
    if torch.jit.is_scripting():
        return torch.ops.vssm.layer_norm(x, weight, bias, gate, eps, "")
    else:
        _check(x, weight, bias)
        _check_same_shape(x, "gate", gate)
        if weight is None and torch.is_autocast_enabled(x.device.type):
            x = x.to(at_least_float32(x))
        path = dispatch.requested()
        if path == "reference":
            return _reference(x, weight, bias, gate, eps)
        if prefers_plain(path) or (not path and gate is None and x.numel() < SMALL):
            return torch_path.forward(x, weight, bias, gate, eps)
        return call(torch.ops.vssm.layer_norm.default, x, weight, bias, gate, eps, path)


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Add a residual branch and normalise the sum, in one pass over memory.

    Args:
        x, branch: (..., C), of one shape; dtypes may differ.
        weight, bias, eps: as in `layer_norm`.

    Returns:
        (x + branch, layer_norm(x + branch)), contiguous; the sum in the wider dtype of x and branch, the second as
        `layer_norm` of that sum.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; the message names the argument.
    """
    if torch.jit.is_scripting():
        return torch.ops.vssm.add_layer_norm(x, branch, weight, bias, eps, "")
    else:
        _check(x, weight, bias)
        _check_same_shape(x, "branch", branch)
        path = dispatch.requested()
        if path == "reference":
            total = x + branch
            return total, _reference(total, weight, bias, None, eps)
        if prefers_plain(path) or (not path and x.numel() < SMALL):
            return torch_path.add_forward(x, branch, weight, bias, eps)
        return call(torch.ops.vssm.add_layer_norm.default, x, branch, weight, bias, eps, path)


def _reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None, eps: float) -> Tensor:
    dtype = at_least_float32(x, weight, bias, gate)
    x_, weight_, bias_, gate_ = to(dtype, x, weight, bias, gate)
    return reference.layer_norm(x_, weight_, bias_, gate_, eps).to(result_dtype(x, weight, bias, gate))


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (..., C) with C of at least 1, got {tuple(x.shape)}")
    check_per_channel("weight", weight, x.shape[-1])
    check_per_channel("bias", bias, x.shape[-1])
    floating(x=x, weight=weight, bias=bias)
    same_device(x=x, weight=weight, bias=bias)


def _check_same_shape(x: Tensor, name: str, other: Tensor | None) -> None:
    if other is not None and other.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {tuple(x.shape)}, got {tuple(other.shape)}")
    floating(**{name: other})
    same_device(x=x, **{name: other})
