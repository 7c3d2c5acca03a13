"""Convolutions on NHWC maps: the tensors stay NHWC, the convolution sees a free channels_last view."""

# torch's layers do not annotate their device and dtype.
# pyright: reportUnknownMemberType=false

from timm.models import register_notrace_module
from torch import Tensor, nn

from vssm.ops import conv2d, depthwise_conv3x3

__all__ = ["Conv2d", "DepthwiseConv3x3"]


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` from NHWC to NHWC, (B, H, W, C) -> (B, H', W', C'): square, one group, no dilation."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 3, 1, 2)
        return conv2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0])).permute(0, 2, 3, 1)


register_notrace_module(Conv2d)


class DepthwiseConv3x3(nn.Conv2d):
    """Depthwise 3x3 convolution with zero padding on NHWC maps: (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels C.
        bias: learn a bias.
        act: "none" or "silu", applied to the result.
        residual: return x + conv(x), the positional encoding of Spatial-Mamba's blocks.
    """

    def __init__(self, dim: int, bias: bool = True, act: str = "none", residual: bool = False):
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim, bias=bias)
        self.act = act
        self.residual = residual

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 3, 1, 2)
        x = depthwise_conv3x3(x, self.weight, self.bias, self.act, self.residual)
        return x.permute(0, 2, 3, 1)


register_notrace_module(DepthwiseConv3x3)
