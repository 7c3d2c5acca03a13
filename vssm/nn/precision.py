"""States are never in half precision."""

# torch's layers do not annotate their device and dtype.
# pyright: reportUnknownMemberType=false

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FullPrecision", "StateConv1x1"]


class FullPrecision(nn.Module):
    """A `state_fn` whose operators take the dtype they are given, also under autocast: subclasses have `_fuse`.

    What it predicts comes from h, and what it weighs are the `values`, a map of the same shape: h, when not given.
    """

    def forward(self, h: Tensor, values: Tensor | None = None) -> Tensor:
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            return self._fuse(h, values)
        else:
            kind = h.device.type
            known = torch.amp.is_autocast_available(kind)
            with torch.autocast(kind, enabled=False) if known else contextlib.nullcontext():
                return self._fuse(h, values)

    def _fuse(self, h: Tensor, values: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class StateConv1x1(nn.Conv2d):
    """A 1x1 convolution in the dtype of its input, also where the weights are narrower: (B, C, H, W) -> (B, C', H, W).

    Args:
        in_channels, out_channels: C and C', both split into `routes` groups.
        bias: learn a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, routes: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, groups=routes, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        bias = self.bias
        return F.conv2d(
            input, self.weight.to(input.dtype), None if bias is None else bias.to(input.dtype), groups=self.groups
        )
