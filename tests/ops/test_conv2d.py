"""The convolution as a product equals torch's, and is taken only where it pays."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.agree import needs_core
from vssm.ops import conv2d, use
from vssm.ops.conv2d import _product
from vssm.ops.linear.core import channels_last_weight


@pytest.mark.parametrize("kernel, stride, padding", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (4, 4, 0)])
@pytest.mark.parametrize("size", [(4, 5), (7, 4)])
def test_the_product_is_the_convolution(kernel, stride, padding, size):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *size, generator=g, dtype=torch.float64).to(memory_format=torch.channels_last)
    weight = torch.randn(9, 6, kernel, kernel, generator=g, dtype=torch.float64)
    for bias in (None, torch.randn(9, generator=g, dtype=torch.float64)):
        y = _product(x, weight, bias, stride, padding)
        torch.testing.assert_close(y, F.conv2d(x, weight, bias, stride, padding), rtol=1e-12, atol=1e-12)
        assert y.is_contiguous(memory_format=torch.channels_last)


@needs_core
@pytest.mark.parametrize("channels, kernel", [(3, 3), (16, 2), (35, 3), (96, 3), (20, 5)])
def test_the_weight_in_the_layout_of_the_map(channels, kernel):
    weight = torch.randn(7, channels, kernel, kernel)
    turned = channels_last_weight(weight)
    assert torch.equal(turned, weight)
    assert turned.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, channels, 40, 40).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(conv2d(x, weight, None, 2, 1), F.conv2d(x, weight, None, 2, 1))


@needs_core
def test_taken_for_heavy_weights_in_inference_only(monkeypatch):
    taken = []

    def spy(*args):
        taken.append(True)
        return _product(*args)

    monkeypatch.setitem(conv2d.__globals__, "_product", spy)
    heavy, light = torch.randn(1, 64, 4, 4), torch.randn(1, 64, 40, 40)
    weight = torch.randn(64, 64, 3, 3, requires_grad=True)
    conv2d(heavy, weight, None, 2, 1)
    assert not taken  # a gradient is wanted
    with torch.no_grad():
        conv2d(light, weight, None, 2, 1)
        with use("torch"):
            conv2d(heavy, weight, None, 2, 1)
        assert not taken
        conv2d(heavy, weight, None, 2, 1)
        assert taken
