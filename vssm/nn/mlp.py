"""The two-layer perceptron of a block."""

import torch.nn.functional as F
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from vssm.ops import bias_act


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) on the last dim: (..., dim) -> (..., dim), with the exact (erf) GELU.

    The bias of fc1 is added together with the activation, one pass over the widest tensor of the network.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.fc1.weight)
        x = bias_act(x, self.fc1.bias, "gelu")
        return self.fc2(x)


register_notrace_module(Mlp)
