"""The two-layer perceptron of a block."""

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from vssm.nn.linear import Linear
from vssm.nn.watch import is_plain
from vssm.ops import mlp


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) on the last dim, plus a residual if given: (..., dim) -> (..., dim); GELU in its exact form.

    Computed as one by `vssm.ops.mlp`, unless a layer was replaced or is watched by a hook.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"the hidden width of an MLP must be at least 1, got {hidden_dim}; raise mlp_ratio")
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if torch.jit.is_scripting():
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, residual)
        elif not is_plain(self.fc1, Linear) or not is_plain(self.fc2, Linear):
            y = self.fc2(F.gelu(self.fc1(x)))
            return y if residual is None else residual + y
        else:
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, residual)


register_notrace_module(Mlp)
