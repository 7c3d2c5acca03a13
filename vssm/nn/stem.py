"""Stems: image (B, 3, H, W) to the first NHWC map (B, H', W', dim)."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import Conv2d, fold_norm
from vssm.nn.depth_first import depth_first
from vssm.nn.norm import LayerNorm, batch_norm_act, batch_norm_act_linear
from vssm.nn.watch import is_plain
from vssm.ops import linear

# The maps inside a stem of convolutions are about so many times larger than the image.
GROWTH = 4


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
        if torch.jit.is_scripting():
            return self._run(x)
        else:
            return depth_first(self, self._run, x, GROWTH)

    def _run(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(_nhwc(x))))
        return self.norm2(self.conv2(x))


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution from NHWC to NHWC."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ResidualStem(nn.Module):
    """Spatial-Mamba's stem, BatchNorm after every convolution: 3x3 to dim/2, a residual pair of 3x3 there, 3x3 with
    stride 2 to 4 dim, 1x1 to dim. ReLU after the first, third and fourth, none after the sum (the released weights
    decide; the paper's figure says GELU). The first stride is patch_size/2."""

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

        # In eval mode the norms are folded into the convolutions; False computes them by themselves.
        self.fold_norms = True

    def forward(self, x: Tensor) -> Tensor:
        learning = self.norm1.training or self.norm2.training or self.norm3.training
        learning = learning or self.norm4.training or self.norm5.training
        x = _nhwc(x).permute(0, 3, 1, 2)
        if torch.jit.is_scripting():
            return self._folded(x) if self.fold_norms and not learning else self._layer_by_layer(x)
        elif not all(is_plain(layer, nn.Conv2d) or is_plain(layer, nn.BatchNorm2d) for layer in self.children()):
            return self._layer_by_layer(x)
        elif learning:
            return self._learning(x)
        else:
            return depth_first(self, self._folded, x, GROWTH) if self.fold_norms else self._layer_by_layer(x)

    def _layer_by_layer(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = x + self.norm3(self.conv3(F.relu(self.norm2(self.conv2(x)))))
        x = F.relu(self.norm4(self.conv4(x)))
        return self.norm5(self.conv5(x)).permute(0, 2, 3, 1)

    @torch.jit.unused
    def _learning(self, x: Tensor) -> Tensor:
        x = batch_norm_act(self.norm1, self.conv1(x).permute(0, 2, 3, 1), "relu")
        y = batch_norm_act(self.norm2, _conv(self.conv2, x), "relu")
        x = batch_norm_act(self.norm3, _conv(self.conv3, y), residual=x)
        x = batch_norm_act_linear(self.norm4, _conv(self.conv4, x), self.conv5.weight.flatten(1), "relu")
        return batch_norm_act(self.norm5, x)

    def _folded(self, x: Tensor) -> Tensor:
        # In place where the tensor is new: no convolution needs its own result in its backward.
        n = self.norm1
        w, b = fold_norm(self.conv1.weight, None, n.weight, n.bias, n.running_mean, n.running_var, n.eps)
        x = F.relu(F.conv2d(x, w, b, self.conv1.stride, padding=1), inplace=True)
        n = self.norm2
        w, b = fold_norm(self.conv2.weight, None, n.weight, n.bias, n.running_mean, n.running_var, n.eps)
        y = F.relu(F.conv2d(x, w, b, padding=1), inplace=True)
        n = self.norm3
        w, b = fold_norm(self.conv3.weight, None, n.weight, n.bias, n.running_mean, n.running_var, n.eps)
        x = F.conv2d(y, w, b, padding=1).add_(x)
        n = self.norm4
        w, b = fold_norm(self.conv4.weight, None, n.weight, n.bias, n.running_mean, n.running_var, n.eps)
        x = F.relu(F.conv2d(x, w, b, self.conv4.stride, padding=1), inplace=True)
        n = self.norm5
        w, b = fold_norm(self.conv5.weight, None, n.weight, n.bias, n.running_mean, n.running_var, n.eps)
        return linear(x.permute(0, 2, 3, 1), w.flatten(1), b)


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
