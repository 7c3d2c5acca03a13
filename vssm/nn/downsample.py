"""Between stages: NHWC maps (B, H, W, C) to (B, H/2, W/2, C')."""

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from vssm.nn.conv import Conv2d
from vssm.nn.norm import LayerNorm
from vssm.nn.shortcut import Shortcut, as_built
from vssm.ops import bottleneck

__all__ = ["BottleneckDownsample", "ConvDownsample", "PatchMerging"]


class PatchMerging(nn.Module):
    """Concatenate the pixels of every 2x2 cell, norm, project (Swin's; VMamba's "v1"). ceil(H/2) x ceil(W/2): an odd
    size is padded with zeros at the bottom and right."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(4 * dim, out_dim, bias=False)
        self.norm = LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        if height % 2 != 0 or width % 2 != 0:
            x = F.pad(x, [0, 0, 0, width % 2, 0, height % 2])
        cells = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.proj(self.norm(torch.cat(cells, dim=-1)))


register_notrace_module(PatchMerging)


class ConvDownsample(nn.Module):
    """A convolution with stride 2 and a norm. Kernel 2 without padding (VMamba's "v2": floor(H/2), an odd row is
    dropped), or kernel 3 with padding 1 ("v3": ceil(H/2))."""

    def __init__(self, dim: int, out_dim: int, kernel_size: int):
        super().__init__()
        self.conv = Conv2d(dim, out_dim, kernel_size, 2, padding=(kernel_size - 1) // 2)
        self.norm = LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BottleneckDownsample(Shortcut):
    """Spatial-Mamba's: 1x1 to 4 out_dim, ReLU, depthwise 3x3 with stride 2, ReLU, 1x1 to out_dim, BatchNorm (the paper
    prints LayerNorm, the released weights hold BatchNorm). ceil(H/2) x ceil(W/2).

    The convolutions are computed as one by `vssm.ops.bottleneck` where all are as built.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        wide = 4 * out_dim
        self.conv1 = nn.Conv2d(dim, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, 2, padding=1, groups=wide)
        self.conv3 = nn.Conv2d(wide, out_dim, 1)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcuts and self._own_layers():
            x = self._convolve(x).permute(0, 3, 1, 2)
        else:
            x = F.relu(self.conv1(x.permute(0, 3, 1, 2)))
            x = self.conv3(F.relu(self.conv2(x)))
        return self.norm(x).permute(0, 2, 3, 1)

    @torch.jit.unused
    def _own_layers(self) -> bool:
        convs = (self.conv1, self.conv2, self.conv3)
        return all(as_built(conv, nn.Conv2d) and conv.bias is not None for conv in convs)

    @torch.jit.unused
    def _convolve(self, x: Tensor) -> Tensor:
        conv1, conv2, conv3 = self.conv1, self.conv2, self.conv3
        assert conv1.bias is not None and conv2.bias is not None and conv3.bias is not None
        weight1, weight3 = conv1.weight.flatten(1), conv3.weight.flatten(1)
        return bottleneck(x, weight1, conv1.bias, conv2.weight, conv2.bias, weight3, conv3.bias)


register_notrace_module(BottleneckDownsample)
