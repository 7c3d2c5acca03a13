"""Root mean square normalisation with torch's own operators. The backward recomputes the statistics from x."""

import torch
from torch import Tensor

from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import result_dtype, to


def forward(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """See the public function."""
    out = result_dtype(x, weight)
    x, weight = to(at_least_float32(x, weight), x, weight)
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(out).contiguous()


def backward(gy: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor | None]:
    """dx, dweight in the compute dtype; dweight None without a weight."""
    gy, x, weight = to(at_least_float32(x, weight), gy, x, weight)
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    normed = x * scale
    dweight = None if weight is None else (gy * normed).reshape(-1, x.shape[-1]).sum(0)
    g = gy if weight is None else gy * weight
    return (g - normed * (g * normed).mean(-1, keepdim=True)) * scale, dweight
