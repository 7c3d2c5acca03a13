"""The MLP as it is written: y = residual + gelu(x W1' + b1) W2' + b2."""

import torch.nn.functional as F
from torch import Tensor


def mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, residual: Tensor | None = None
) -> Tensor:
    y = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    return y if residual is None else residual + y
