"""Normalisation over the channels of NHWC maps, and of the batch."""

# torch's layers do not annotate their device and dtype.
# pyright: reportUnknownMemberType=false

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from vssm.ops import batch_norm, batch_norm_linear, layer_norm, rms_norm

__all__ = ["LayerNorm", "RMSNorm", "batch_norm_act", "batch_norm_act_linear"]


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dim, computed by `vssm.ops.layer_norm`.

    x (..., dim) -> (..., dim); with a gate of the same shape, the result times silu(gate), in the same pass.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return layer_norm(x, self.weight, self.bias, self.eps, gate)


register_notrace_module(LayerNorm)


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last dim, `vssm.ops.rms_norm`.

    x (..., dim) -> (..., dim) in the dtype of the weight: a residual stream may be wider than the model.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps).to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


register_notrace_module(RMSNorm)


def batch_norm_act(norm: nn.BatchNorm2d, x: Tensor, act: str = "none", residual: Tensor | None = None) -> Tensor:
    """act(norm(x)) + residual on NHWC maps: (B, H, W, C) -> (B, H, W, C); act "none" or "relu"."""
    if norm.training and norm.affine:
        momentum = _count_batch(norm)
        return batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, momentum, norm.eps, act, residual
        )
    x = norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    x = F.relu(x) if act == "relu" else x
    return x if residual is None else residual + x


def batch_norm_act_linear(norm: nn.BatchNorm2d, x: Tensor, weight: Tensor, act: str = "none") -> Tensor:
    """`batch_norm_act`, then a linear layer with this weight (C', C)."""
    if norm.training and norm.affine:
        momentum = _count_batch(norm)
        return batch_norm_linear(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, weight, momentum, norm.eps, act
        )
    return F.linear(batch_norm_act(norm, x, act), weight)


def _count_batch(norm: nn.BatchNorm2d) -> float:
    """Count a training batch as `torch.nn.BatchNorm2d` does, and return how far the running statistics move."""
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the average over all batches
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if norm.momentum is None else norm.momentum
