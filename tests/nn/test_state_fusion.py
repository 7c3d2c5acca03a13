"""StateFusion on states (B, K, C, N, H, W)."""

import pytest
import torch

from vssm.nn import SS2D, StateFusion
from vssm.ops import BIDIRECTIONAL, CROSS, RASTER, ss2d_readout, ss2d_states


def _states(*shape):
    """Random states in the memory order that the scan writes."""
    B, K, C, N, H, W = shape
    return torch.randn(B, K, N, H, W, C, dtype=torch.float64).permute(0, 1, 5, 2, 3, 4)


def test_starts_as_the_sum_of_neighbours():
    h = _states(1, 1, 2, 1, 9, 9)
    fused = StateFusion(2, dilations=(1, 3)).double()(h)
    around = [h[..., 4 + dy, 4 + dx] for d in (1, 3) for dy in (-d, 0, d) for dx in (-d, 0, d)]
    torch.testing.assert_close(fused[..., 4, 4], torch.stack(around).sum(0))


@pytest.mark.parametrize("routes, d_state", [(1, 1), (4, 1), (1, 3), (2, 2)])
def test_each_channel_has_its_kernel_and_its_states_share_it(routes, d_state):
    fusion = StateFusion(3, routes, d_state, dilations=(1, 2)).double()
    for p in fusion.parameters():
        torch.nn.init.normal_(p)
    h = _states(2, routes, 3, d_state, 5, 4)
    fused = fusion(h)
    assert fused.shape == h.shape
    for k in range(routes):
        for c in range(3):
            single = StateFusion(1, dilations=(1, 2)).double()
            with torch.no_grad():
                single.alphas.copy_(fusion.alphas)
                for own, kernel in zip(single.kernels, fusion.kernels, strict=True):
                    own.copy_(kernel[k * 3 + c : k * 3 + c + 1])
            for n in range(d_state):
                want = single(h[:, k : k + 1, c : c + 1, n : n + 1])
                torch.testing.assert_close(fused[:, k : k + 1, c : c + 1, n : n + 1], want)


def test_centre_tap_alone_is_the_plain_scan():
    plain = SS2D(4, scan="raster", gate=True).double()
    fused = SS2D(4, scan="raster", gate=True, state_fn=StateFusion(8)).double()
    fused.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for kernel in fused.state_fn.kernels:
            kernel.zero_()
            kernel[:, :, 1, 1] = 1
        fused.state_fn.alphas.copy_(torch.tensor([0.5, 0.25, 0.25]))
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x))


def test_weights_changed_after_a_forward_are_used():
    fusion = StateFusion(2).double().eval()
    h = _states(1, 1, 2, 1, 6, 6)
    first = fusion(h)
    with torch.no_grad():
        fusion.alphas.mul_(2)
    torch.testing.assert_close(fusion(h), 2 * first)


@pytest.mark.parametrize("dilations", [(), (0,), (1, -3)])
def test_bad_dilations_are_refused(dilations):
    with pytest.raises(ValueError, match="dilations must be positive"):
        StateFusion(4, dilations=dilations)


@pytest.mark.parametrize("routes", [RASTER, BIDIRECTIONAL, CROSS], ids=len)
@pytest.mark.parametrize("d_state", [1, 2])
def test_scan_equals_states_fusion_readout_one_after_the_other(routes, d_state):
    """Values and gradients of all parameters, which `scan` splits by route."""
    torch.manual_seed(0)
    dim, rank, count = 3, 2, len(routes)
    fusion = StateFusion(dim, count, d_state).double()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    u, x_proj = torch.randn(2, dim, 5, 4), 0.3 * torch.randn(count, rank + 2 * d_state, dim)
    scan = (x_proj, torch.randn(count, dim, rank), torch.randn(count, dim), -torch.rand(count * dim, d_state))
    leaves = [tensor.double().requires_grad_() for tensor in (u, *scan, torch.randn(count * dim))]
    u, *weights, D = leaves
    h, C = ss2d_states(u, *weights, routes)
    expected, found = ss2d_readout(fusion(h), C, u, D), fusion.scan(u, tuple(weights), D, routes)
    torch.testing.assert_close(found, expected)
    leaves += fusion.parameters()
    gradients = (torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
