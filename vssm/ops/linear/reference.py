"""The linear layer and what follows it as it is written: y = act(x W' + b) + residual."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, act: str) -> Tensor:
    y = F.linear(x, weight, bias)
    if act == "gelu":
        y = F.gelu(y)
    elif act == "silu":
        y = F.silu(y)
    elif act == "relu":
        y = F.relu(y)
    return y if residual is None else residual + y
