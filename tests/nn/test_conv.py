"""Convolutions on NHWC maps are torch's on NCHW ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vssm.nn import Conv2d, DepthwiseConv3x3


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (4, 4, 0), (2, 2, 0), (3, 1, 1), (1, 1, 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_conv2d(kernel, stride, padding, bias, gradients):
    torch.manual_seed(0)
    layer, x = Conv2d(5, 7, kernel, stride, padding, bias=bias), torch.randn(2, 9, 11, 5)
    with torch.set_grad_enabled(gradients):
        y = layer(x)
    want = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, stride, padding).permute(0, 2, 3, 1)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    assert isinstance(layer, nn.Conv2d) and y.shape == want.shape


def test_depthwise_gradients():
    torch.manual_seed(0)
    layer = DepthwiseConv3x3(4, residual=True).double()
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight, layer.bias))
    plain = x + F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=1, groups=4).permute(0, 2, 3, 1)
    want = torch.autograd.grad(plain.square().sum(), (x, layer.weight, layer.bias))
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)


def test_another_number_of_channels_is_refused():
    with pytest.raises((ValueError, RuntimeError), match=r"channels|weight"):
        DepthwiseConv3x3(4)(torch.randn(1, 5, 6, 3))
