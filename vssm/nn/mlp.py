"""The two-layer perceptron of a block."""

from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from vssm.ops import mlp


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) on the last dim, plus a residual if given: (..., dim) -> (..., dim); GELU in its exact form."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, residual)


register_notrace_module(Mlp)
