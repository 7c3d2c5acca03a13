"""The readout of states on every path: the equation, gradients, errors."""

import pytest
import torch

from tests.ops.agree import PATHS, assert_agrees, needs_core, randn
from vssm.ops import ss2d_readout, use


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(2, 4, 20, 1, 5, 6), (1, 1, 3, 1, 1, 1), (1, 2, 33, 3, 4, 2), (2, 3, 16, 16, 7, 9)])
def test_readout_agrees_with_the_equation(path, shape):
    B, K, E, N, H, W = shape
    for dtype in (torch.float32, torch.float64):
        h = randn(B, K, N, H, W, E, dtype=dtype).permute(0, 1, 5, 2, 3, 4)
        tensors = {"h": h, "C": randn(B, K, N, H, W, dtype=dtype, seed=1), "x": randn(B, E, H, W, dtype=dtype, seed=2)}
        assert_agrees(ss2d_readout, tensors | {"D": randn(K * E, dtype=dtype, seed=3)}, path)
        assert_agrees(lambda h, C: ss2d_readout(h, C, h[:, 0, :, 0]), {n: tensors[n] for n in ("h", "C")}, path)
    h, C, x, D = (randn(*size, seed=4) for size in ((B, K, E, N, H, W), (B, K, N, H, W), (B, E, H, W), (K * E,)))
    with use(path):
        y = ss2d_readout(h, C, x, D)  # in any memory
        expected = torch.einsum("bkenhw,bknhw->behw", h, C) + x * D.view(K, E).sum(0)[:, None, None]
        torch.testing.assert_close(y, expected)
        assert ss2d_readout(h.bfloat16(), C, x, D).dtype == torch.bfloat16


@needs_core
def test_readout_does_not_depend_on_the_number_of_threads():
    h, C, x = randn(1, 4, 1, 40, 40, 24).permute(0, 1, 5, 2, 3, 4), randn(1, 4, 1, 40, 40), randn(1, 24, 40, 40)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (h, C)]
            y = ss2d_readout(*leaves, x)
            found.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_readout_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"h must be \(B, K, C, N, H, W\)"):
        ss2d_readout(torch.zeros(1, 4, 3, 1, 2, 2), torch.zeros(1, 4, 1, 2, 3), torch.zeros(1, 3, 2, 2))
    h, C, x = torch.zeros(1, 4, 3, 1, 2, 2), torch.zeros(1, 4, 1, 2, 2), torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"x must be \(1, 3, 2, 2\) for h"):
        ss2d_readout(h, C, x[:, :1], torch.zeros(12))
    with pytest.raises(ValueError, match=r"D must be \(12,\) for h"):
        ss2d_readout(h, C, x, torch.zeros(3))
    with pytest.raises(ValueError, match="D is on meta but h is on cpu"):
        ss2d_readout(h, C, x, torch.zeros(12, device="meta"))
