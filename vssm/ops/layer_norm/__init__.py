"""Layer normalisation over the last dim, with the gate of a state space model folded in.

    y = (x - mean) / sqrt(var + eps) * weight + bias,  times silu(gate) if a gate is given

Layer Normalization (arXiv 1607.06450), equation 3; the gate is that of Mamba's output (arXiv 2312.00752, figure 3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import checks, dispatch
from vssm.ops.layer_norm import core, reference
from vssm.ops.operator import Operator, autocasts
from vssm.ops.tensors import at_least_float32

__all__ = ["layer_norm"]

# Below this many elements torch's own operator wins: a call of an operator defined in Python costs more than the core
# saves on a small map (`python benchmarks/pointwise.py --part layer_norm`). Not where gradients may be wanted: the
# third derivative of torch's is wrong, as it takes the statistics for constants.
SMALL = 1 << 16


def _composed(x: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None, eps: float) -> Tensor:
    y = F.layer_norm(x.contiguous(), x.shape[-1:], weight, bias, eps)
    return y if gate is None else y * F.silu(gate)


def macs(x, weight, *_) -> dict[str, int]:
    """fvcore's count: 5 per element with a weight and a bias, 4 without."""
    return {"layer_norm": (4 if weight is None else 5) * torch.Size(x).numel()}


_layer_norm = Operator(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? gate, float eps) -> Tensor",
    shape=lambda x, *_: x.shape,
    reference=reference.layer_norm,
    portable=_composed,  # a node of its own in ONNX
    torch_path=_composed,
    core=core,
    triton="vssm.ops.layer_norm.triton",
    macs=macs,
    inlines="compile",
)


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
        checks.same_shape("gate", gate, x=x)
        checks.floating(x=x, weight=weight, bias=bias, gate=gate)
        checks.same_device(x=x, weight=weight, bias=bias, gate=gate)
        if weight is None and torch.is_autocast_enabled(x.device.type):
            x = x.to(at_least_float32(x))
        # An exported program of free sizes must not ask for them.
        graph = torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_exporting()
        if gate is None and not graph and not dispatch.requested() and x.numel() < SMALL:
            if all(t is None or t.dtype is x.dtype for t in (weight, bias)) and not autocasts(x):
                return _composed(x, weight, bias, None, eps)  # torch's computes halves in float32 as well
            return _layer_norm.evaluate(_composed, (x, weight, bias, None, eps))
        return _layer_norm(x, weight, bias, gate, eps)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (..., C) with C of at least 1, got {tuple(x.shape)}")
    checks.per_channel("weight", weight, x.shape[-1])
    checks.per_channel("bias", bias, x.shape[-1])
