"""The MLP of a block."""

# torch annotates the bias of nn.Linear as never None; without one it is.
# pyright: reportUnnecessaryComparison=false

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from vssm.nn.shortcut import Shortcut, as_built
from vssm.ops import mlp

__all__ = ["Mlp"]


class Mlp(Shortcut):
    """fc2(gelu(fc1(x))) on the last dim, plus a residual if given: (..., dim) -> (..., dim); GELU in its exact form.

    Computed as one by `vssm.ops.mlp` where both layers are as built.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"the hidden width of an MLP must be at least 1, got {hidden_dim}; raise mlp_ratio")
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.shortcuts and self._own_layers():
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, residual)
        y = self.fc2(F.gelu(self.fc1(x)))
        return y if residual is None else residual + y

    @torch.jit.unused
    def _own_layers(self) -> bool:
        layers = (self.fc1, self.fc2)
        return all(as_built(layer, nn.Linear) and layer.bias is not None for layer in layers)


register_notrace_module(Mlp)
