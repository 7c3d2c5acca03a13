"""Bias and activation as the equations say them: the judge of every other path."""

import math

import torch
from torch import Tensor


def activation(x: Tensor, act: str) -> Tensor:
    """gelu: x Phi(x), the exact form (arXiv 1606.08415); silu: x sigmoid(x); relu: max(x, 0)."""
    if act == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    if act == "silu":
        return x * torch.sigmoid(x)
    return x.clamp(min=0)


def bias_act(x: Tensor, bias: Tensor | None, act: str) -> Tensor:
    """act(x + bias), bias along the last dim."""
    return activation(x if bias is None else x + bias, act)
