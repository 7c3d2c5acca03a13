"""Stems: image (B, 3, H, W) to the first NHWC map (B, H', W', dim)."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_  # pyright: ignore[reportPrivateImportUsage, reportUnknownVariableType]
from timm.models import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import Conv2d
from vssm.nn.norm import LayerNorm, batch_norm_act, batch_norm_act_linear
from vssm.nn.shortcut import Shortcut, as_built
from vssm.ops import conv2d, linear
from vssm.ops.operator import autocasts, is_inference

__all__ = ["ConvStem", "PatchStem", "PositionEmbedding", "ResidualStem"]


def _nhwc(x: Tensor) -> Tensor:
    """An image (B, C, H, W) in the memory layout of all maps: a convolution gives back the layout it was given."""
    return x.permute(0, 2, 3, 1).contiguous()


class PatchStem(nn.Module):
    """Non-overlapping patches: one convolution with kernel = stride = patch_size, then a norm (VMamba's "v1")."""

    def __init__(self, in_chans: int, dim: int, patch_size: int):
        super().__init__()
        self.conv1 = Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm1 = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(_nhwc(x)))


class ConvStem(nn.Module):
    """Two overlapping 3x3 convolutions, strides patch_size/2 and 2, each normed, GELU between (VMamba's "v2")."""

    def __init__(self, in_chans: int, dim: int, patch_size: int):
        super().__init__()
        self.conv1 = Conv2d(in_chans, dim // 2, 3, patch_size // 2, padding=1)
        self.norm1 = LayerNorm(dim // 2)
        self.conv2 = Conv2d(dim // 2, dim, 3, 2, padding=1)
        self.norm2 = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(_nhwc(x))))
        return self.norm2(self.conv2(x))


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution from NHWC to NHWC."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualStem(Shortcut):
    """Spatial-Mamba's stem, BatchNorm after every convolution: 3x3 to dim/2, a residual pair of 3x3 there, 3x3 with
    stride 2 to 4 dim, 1x1 to dim. ReLU after the first, third and fourth, none after the sum (the released weights
    decide; the paper's figure says GELU). The first stride is patch_size/2.

    Where all layers are as built, norms run with what follows them in training mode, and in eval mode without gradients
    as part of the convolution before them.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int):
        super().__init__()
        half, wide = dim // 2, 4 * dim
        self.conv1 = nn.Conv2d(in_chans, half, 3, patch_size // 2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, wide, 3, 2, padding=1, bias=False)
        self.norm4 = nn.BatchNorm2d(wide)
        self.conv5 = nn.Conv2d(wide, dim, 1, bias=False)
        self.norm5 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = _nhwc(x).permute(0, 3, 1, 2)
        if self.shortcuts and self._all_as_built():
            if all(norm.training for norm in self._norms()):
                return self._learning(x)
            if self._is_fixed(x):
                return self._fixed(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = x + self.norm3(self.conv3(F.relu(self.norm2(self.conv2(x)))))
        x = F.relu(self.norm4(self.conv4(x)))
        return self.norm5(self.conv5(x)).permute(0, 2, 3, 1)

    @torch.jit.unused
    def _all_as_built(self) -> bool:
        return all(
            (as_built(layer, nn.Conv2d) and layer.bias is None) or (as_built(layer, nn.BatchNorm2d) and layer.affine)
            for layer in self.children()
        )

    @torch.jit.unused
    def _norms(self) -> tuple[nn.BatchNorm2d, ...]:
        return self.norm1, self.norm2, self.norm3, self.norm4, self.norm5

    @torch.jit.unused
    def _learning(self, x: Tensor) -> Tensor:
        x = batch_norm_act(self.norm1, self.conv1(x).permute(0, 2, 3, 1), "relu")
        y = batch_norm_act(self.norm2, _conv(self.conv2, x), "relu")
        x = batch_norm_act(self.norm3, _conv(self.conv3, y), residual=x)
        x = batch_norm_act_linear(self.norm4, _conv(self.conv4, x), self.conv5.weight.flatten(1), "relu")
        return batch_norm_act(self.norm5, x)

    @torch.jit.unused
    def _is_fixed(self, x: Tensor) -> bool:
        """Whether this is inference, step by step, in the dtype of the weights."""
        if not is_inference((x,)) or autocasts(x):
            return False
        same = all(p.dtype == x.dtype for p in self.parameters())
        return same and not any(norm.training or norm.running_mean is None for norm in self._norms())

    @torch.jit.unused
    def _fixed(self, x: Tensor) -> Tensor:
        """The norms' factors and shifts are computed anew at every call: they cannot be stale."""
        x = _normed_conv(self.conv1, self.norm1, x).relu_()
        y = _normed_conv(self.conv2, self.norm2, x).relu_()
        x = _normed_conv(self.conv3, self.norm3, y).add_(x)
        x = _normed_conv(self.conv4, self.norm4, x).relu_().permute(0, 2, 3, 1)
        weight, bias = _fold(self.conv5, self.norm5)
        return linear(x, weight.flatten(1), bias)


def _normed_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return conv2d(x, *_fold(conv, norm), conv.stride[0], int(conv.padding[0]))


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does the norm's work too."""
    assert norm.running_mean is not None and norm.running_var is not None
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    factor = norm.weight.to(wide) * torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    weight, bias = conv.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


register_notrace_module(ResidualStem)


class PositionEmbedding(nn.Module):
    """Add a learned embedding (1, dim, H', W') to the stem's map: the image size is then fixed."""

    def __init__(self, dim: int, grid: tuple[int, int]):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, dim, grid[0], grid[1]))
        trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.weight.shape[2], self.weight.shape[3]
        if x.shape[1] != height or x.shape[2] != width:
            raise ValueError(
                f"the position embedding is for a {height} x {width} grid, this image gives {x.shape[1]} x "
                f"{x.shape[2]}; resize the image, or build the model with another img_size"
            )
        return x + self.weight.permute(0, 2, 3, 1)


register_notrace_module(PositionEmbedding)
