"""Linear layers that finish their result in one pass."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from vssm.nn.watch import is_plain
from vssm.ops import linear


class Linear(nn.Linear):
    """`torch.nn.Linear` computed by `vssm.ops.linear`: (..., C) -> (..., C'), plus a residual (..., C') if given."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return linear(input, self.weight, self.bias, "none", residual)


register_notrace_module(Linear)


class Projections(nn.Module):
    """The two linear layers around a mixer, `in_proj` and `out_proj`, in as few passes as they take.

    Subclasses own the layers; what stands in for one of them, or is watched, is called as it is.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations and knows no modules
        in_proj: nn.Linear
        out_proj: nn.Linear

    def project_and_gate(self, x: Tensor, inner_dim: int) -> tuple[Tensor, Tensor]:
        """The two halves of in_proj(x), (..., inner_dim) and the rest.

        Two products rather than one and a split: both halves come out contiguous.
        """
        weight = self.in_proj.weight
        if torch.jit.is_scripting():
            return F.linear(x, weight[:inner_dim]), F.linear(x, weight[inner_dim:])
        elif is_plain(self.in_proj, Linear):
            return linear(x, weight[:inner_dim]), linear(x, weight[inner_dim:])
        else:
            u, z = self.in_proj(x).chunk(2, dim=-1)
            return u, z

    def project_out(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """out_proj(y) + residual."""
        if residual is None:
            return self.out_proj(y)
        if torch.jit.is_scripting():
            return residual + self.out_proj(y)
        elif is_plain(self.out_proj, Linear):
            return self.out_proj(y, residual)
        else:
            return residual + self.out_proj(y)
