"""The two linear layers around a mixer, in as few passes as they take."""

# torch annotates the bias of nn.Linear as never None; without one it is.
# pyright: reportUnnecessaryComparison=false

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vssm.nn.shortcut import Shortcut, as_built
from vssm.ops import linear

__all__ = ["Projections"]


class Projections(Shortcut):
    """Subclasses own `in_proj` and `out_proj`, plain linear layers."""

    if TYPE_CHECKING:  # TorchScript reads annotations and knows no modules
        in_proj: nn.Linear
        out_proj: nn.Linear

    def project_in(self, x: Tensor) -> Tensor:
        """in_proj(x)."""
        if self.shortcuts and self._own_in_proj():
            return linear(x, self.in_proj.weight, self.in_proj.bias)
        return self.in_proj(x)

    def project_and_gate(self, x: Tensor, inner_dim: int) -> tuple[Tensor, Tensor]:
        """The two halves of in_proj(x), (..., inner_dim) and the rest.

        Two products rather than one and a split: both halves come out contiguous.
        """
        if self.shortcuts and self._own_in_proj():
            weight, bias = self.in_proj.weight, self.in_proj.bias
            first, second = (None, None) if bias is None else (bias[:inner_dim], bias[inner_dim:])
            return linear(x, weight[:inner_dim], first), linear(x, weight[inner_dim:], second)
        y = self.in_proj(x)
        return y[..., :inner_dim], y[..., inner_dim:]

    def project_out(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """out_proj(y) + residual."""
        if self.shortcuts and self._own_out_proj():
            return linear(y, self.out_proj.weight, self.out_proj.bias, "none", residual)
        y = self.out_proj(y)
        return y if residual is None else residual + y

    @torch.jit.unused
    def _own_in_proj(self) -> bool:
        return as_built(self.in_proj, nn.Linear)

    @torch.jit.unused
    def _own_out_proj(self) -> bool:
        return as_built(self.out_proj, nn.Linear)
