"""The linear layer and what follows it as it is written: y = act(x W' + b) + residual."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, act: str) -> Tensor:
    y = activated(F.linear(x, weight, bias), act)
    return y if residual is None else residual + y


def activated(y: Tensor, act: str) -> Tensor:
    """act(y)."""
    if act == "gelu":
        return F.gelu(y)
    if act == "silu":
        return F.silu(y)
    return F.relu(y) if act == "relu" else y
