"""Reference implementation: the causal depthwise convolution; the ground truth for all backends."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool) -> Tensor:
    """act(bias_c + sum_i weight_c[i] x_c[t - W + 1 + i]) with zeros before the sequence; flipped if reverse."""
    if reverse:
        x = x.flip(-1)
    length, width = x.shape[-1], weight.shape[-1]
    padded = F.pad(x, (width - 1, 0))
    y = torch.zeros_like(x)
    for i in range(width):
        y = y + weight[:, i, None] * padded[..., i : i + length]
    if bias is not None:
        y = y + bias[:, None]
    if act == "silu":
        y = y * torch.sigmoid(y)
    return y.flip(-1) if reverse else y
