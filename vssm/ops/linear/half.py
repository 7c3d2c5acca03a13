"""Products in half precision on the CPU, in inference: torch's own, what follows them in place.

oneDNN's products reach what the vectors or tiles of a CPU can do in bfloat16: see benchmarks/profile_model.py. What
an activation and a sum out of place cost beside them is memory: at B=8 the hidden tensor of VMamba-T's first stage is
19 MB, paged in anew for each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import dispatch, native
from vssm.ops.linear import bias_act, reference
from vssm.ops.operator import autocasts, is_inference

HALVES = (torch.bfloat16, torch.float16)
PREFERENCE = dispatch.Preference("torch's products are as fast in half precision")


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether these products are in half precision, by their tensors or by autocast, and nothing records them."""
    if x.device.type != "cpu" or dispatch.requested() or not native.available():
        return False
    half = autocasts(x) or (x.dtype in HALVES and all(t is None or t.dtype is x.dtype for t in others))
    return half and is_inference((x, *others))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, act: str) -> Tensor:
    """See the public function. Rounds where torch's operators one after the other do."""
    y = F.linear(x, weight, bias)
    if y.dtype not in HALVES or not y.is_contiguous() or y.numel() == 0:
        y = reference.activated(y, act)
    elif act != "none":
        bias_act.forward(y, None, act, out=y)
    if residual is None:
        return y
    return y.add_(residual) if residual.dtype is y.dtype else residual + y


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, residual: Tensor | None) -> Tensor:
    """See the public function."""
    return linear(linear(x, weight1, bias1, None, "gelu"), weight2, bias2, residual, "none")
