"""State maps, decay, and the kernel of a time-invariant SSM."""

import pytest
import torch

import vssm
from tests.analysis.test_matrices import SMALL, inputs_of, network, shaken
from tests.goldens import image
from vssm.analysis import blocks, memory_decay, mixing_matrix, scan_of, state_maps, time_invariant_kernel
from vssm.ops import selective_scan, selective_scan_states


def test_states_are_those_that_the_module_gets_and_gives():
    model, x = network("spatial mamba"), image(1, (3, 32, 32), torch.float64)
    fusion, kept = blocks(model)["1.1"].state_fn, {}
    handle = fusion.register_forward_hook(lambda _, given, made: kept.update(before=given[0], after=made))
    with torch.no_grad():
        model(x[None])
    handle.remove()
    found = state_maps(model, x, "1.1")
    assert found.block == "1.1" and found.names == ("rows forwards",)
    torch.testing.assert_close(found.before, kept["before"][0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.after, kept["after"][0], rtol=1e-10, atol=1e-12)
    before, after = found.mean()
    torch.testing.assert_close(before, kept["before"][0].mean((1, 2)))
    torch.testing.assert_close(found.channel(3)[1], kept["after"][0, :, 3].mean(1))
    assert (before - after).abs().max() > 1e-3
    with pytest.raises(IndexError, match=r"no channel 32: block 1\.1 has 0 to 31"):
        found.channel(32)


def test_states_without_fusion_and_of_tokens():
    found = state_maps(network("vmamba, N = 4"), image(1, (3, 32, 32), torch.float64))
    assert torch.equal(found.before, found.after) and found.before.shape[:3] == (4, 32, 4)
    model, x = network("vim"), image(1, (3, 32, 32), torch.float64)
    found, scan = state_maps(model, x, 0), scan_of(model, x, 0)
    assert found.before.shape == (2, 32, 16, 8, 8)
    part = scan.routes[0]
    h = selective_scan_states(part.u[0].T[None], part.dt[0].T[None], part.A, part.B[0].T[None])[0]
    tokens = torch.cat([h[..., :32], h[..., 33:]], -1).unflatten(-1, (8, 8))
    torch.testing.assert_close(found.before[0], tokens, rtol=1e-10, atol=1e-12)


def test_the_cascade_has_none():
    model = vssm.create_model("vmamba_nano", **SMALL, scan="cascade").double().eval()
    with pytest.raises(ValueError, match="no states on one grid"):
        state_maps(model, image(1, (3, 32, 32), torch.float64))
    with pytest.raises(ValueError, match="not the cascade scan, and no class token"):
        memory_decay(network("vim"), image(1, (3, 32, 32), torch.float64))


def test_a_kernel_is_the_scan_of_constants():
    """Mamba-Adaptor's supplement, equation 1: y = u * (C b, C a b, C a^2 b, ...)."""
    generator = torch.Generator().manual_seed(0)
    E, N, L = 3, 4, 50
    dt, u = torch.rand(E, generator=generator).double() * 0.2, torch.randn(E, L, generator=generator).double()
    A = -torch.rand(E, N, generator=generator).double() * 3
    B, C = (torch.randn(N, generator=generator).double() for _ in range(2))
    kernel = time_invariant_kernel(dt, A, B, C, L)
    want = selective_scan(
        u[None],
        dt[None, :, None].expand(1, E, L),
        A,
        B[None, :, None].expand(1, N, L),
        C[None, :, None].expand(1, N, L),
    )[0]
    found = torch.stack([sum(kernel[:, k] * u[:, t - k] for k in range(t + 1)) for t in range(L)], 1)
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        time_invariant_kernel(dt, A, B, C, 0)


@torch.no_grad()
def constant(model):
    """dt, B and C that do not depend on the image."""
    for mixer in blocks(model).values():
        mixer.x_proj_weight.zero_()
    return model


def test_decay_of_constant_steps():
    """x_proj = 0 leaves dt = softplus(bias), the same everywhere: w alone falls as exp(dt A d)."""
    model, x = constant(network("vmamba")), image(1, (3, 32, 32), torch.float64)
    found = memory_decay(model, x, "1.1", weights="decay")
    scan = scan_of(model, x, "1.1")
    height, width = scan.size
    for k, part in enumerate(scan.routes):
        rate = part.dt[0, 0] * part.A[:, 0]
        steps = torch.arange(height * width, dtype=torch.float64)
        want = torch.exp(rate[:, None] * steps).mean(0)
        torch.testing.assert_close(found.steps[k], want, rtol=1e-9, atol=1e-12)
        side = width if part.name.startswith("rows") else height
        torch.testing.assert_close(found.along[k], want[:side], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.across[k], want[::side][:side], rtol=1e-9, atol=1e-12)


def test_decay_against_a_loop():
    model, x = network("spatial mamba"), image(1, (3, 32, 32), torch.float64)
    scan = scan_of(model, x, "1.1")
    height, width = scan.size
    M = (
        torch.stack([mixing_matrix(model, x, "1.1", channel=c, skip=False) for c in range(scan.y.shape[0])])
        .abs()
        .mean(0)
    )
    sums, counts = torch.zeros(width), torch.zeros(width)
    for i in range(height * width):
        for j in range(i + 1):
            if i // width == j // width:
                sums[i - j] += M[i, j]
                counts[i - j] += 1
    want = sums / counts
    found = memory_decay(model, x, "1.1")
    torch.testing.assert_close(found.along[0].float(), want / want[0], rtol=1e-4, atol=1e-6)
    alone = memory_decay(model, x, "1.1", adaptors=False)
    assert found.across[0, 1] > 1.5 * alone.across[0, 1], "the fusion reads the row above"


def test_adaptors_remember_more():
    model = network("vmamba")
    vssm.add_adaptors(model, spatial=False)
    shaken(model).double().eval()
    x = image(1, (3, 32, 32), torch.float64)
    with_adaptors, alone = memory_decay(model, x, "1.1"), memory_decay(model, x, "1.1", adaptors=False)
    assert (with_adaptors.across - alone.across).abs().max() > 1e-3
    other = memory_decay(model, x, "1.1", adaptors=False)
    assert torch.equal(alone.steps, other.steps)
    assert inputs_of(scan_of(model, x, "1.1"), 0).shape == (16, 64)
