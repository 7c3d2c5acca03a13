"""Adaptor-T and Adaptor-S: the identity at the start, what they compute afterwards, scripted and exported."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import set_scriptable

from tests.ops.agree import PATHS
from vssm.nn import SS2D, AdaptorS, AdaptorT, BidirectionalMamba, StateFusion
from vssm.nn.adaptor import ring_of_offsets
from vssm.ops import use


def _randomised(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def test_the_ring():
    places = [[0, 1], [2, 0], [0, -3], [-4, 0]]
    torch.testing.assert_close(ring_of_offsets(4), torch.tensor(places, dtype=torch.float32), atol=1e-6, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_static_selection_is_the_mean_of_the_ring(path):
    adaptor = AdaptorT(3, sequences=2, selection="static").double()
    assert [name for name, _ in adaptor.named_parameters()] == ["gain"]
    adaptor.gain.data.fill_(1)
    h = torch.randn(1, 2, 3, 2, 10, 11, dtype=torch.float64)
    padded = F.pad(h, (4, 4, 4, 4))
    places = ring_of_offsets(4).round().int().tolist()
    expected = h + sum(padded[..., 4 + y : 14 + y, 4 + x : 15 + x] for y, x in places) / 4
    with use(path):
        torch.testing.assert_close(adaptor(h), expected, atol=1e-6, rtol=0)


def test_learned_selection_follows_the_state():
    """Every sequence predicts from its own states, averaged over N; the coefficients sum to 1."""
    adaptor = _randomised(AdaptorT(3, sequences=2, points=2).double())
    h = torch.randn(1, 2, 3, 2, 6, 6, dtype=torch.float64)
    other = h.clone()
    other[:, 1] += 1
    y, z = adaptor(h), adaptor(other)
    assert torch.equal(y[:, 0], z[:, 0]) and not torch.allclose(y[:, 1], z[:, 1])
    constant = torch.ones(1, 2, 3, 1, 40, 40, dtype=torch.float64)
    inside = adaptor(constant)[..., 10:-10, 10:-10]
    torch.testing.assert_close(inside, (1 + adaptor.gain)[None, :, :, None, None, None].expand(inside.shape))


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    adaptor = _randomised(AdaptorT(2, points=2).double())
    h = torch.randn(1, 1, 2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in adaptor.named_parameters()]

    def function(h, *parameters):
        return torch.func.functional_call(adaptor, dict(zip(names, parameters, strict=True)), (h,))

    assert torch.autograd.gradcheck(function, (h, *adaptor.parameters()))
    spatial = _randomised(AdaptorS(3).double())
    y, u = torch.randn(2, 1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spatial, (y, u))


def test_spatial_adaptor_is_its_convolutions():
    adaptor = _randomised(AdaptorS(5, dilations=(1, 2)).double())
    y = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    expected = y
    for kernel, dilation in zip(adaptor.kernels, (1, 2), strict=True):
        padded = F.pad(y, (dilation,) * 4, mode="replicate")
        expected = expected + F.conv2d(padded, kernel, dilation=dilation, groups=5)
    u = torch.randn_like(y)
    torch.testing.assert_close(adaptor(y, u), expected)
    parallel = AdaptorS(5, dilations=(1, 2), parallel=True).double()
    parallel.load_state_dict(adaptor.state_dict())
    torch.testing.assert_close(parallel(u, y), u + expected - y)


MIXERS = {
    "cross": lambda: SS2D(8, d_state=2),
    "fused": lambda: SS2D(8, d_state=1, scan="raster", state_fn=StateFusion(16)),
    "vim": lambda: BidirectionalMamba(8, d_state=4),
}


def _add(mixer):
    scans = [mixer.forward_branch, mixer.backward_branch] if isinstance(mixer, BidirectionalMamba) else [mixer]
    for scan in scans:
        scan.set_adaptor_t(AdaptorT(16, len(scan.routes)))
    mixer.set_adaptor_s(AdaptorS(16))
    return mixer


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_a_mixer_does_at_the_start_what_it_did(kind, dtype, tolerance):
    torch.manual_seed(0)
    mixer, x = MIXERS[kind]().to(dtype), torch.randn(2, 6, 5, 8, dtype=dtype)
    before = mixer(x)
    _add(mixer).to(dtype)
    torch.testing.assert_close(mixer(x), before, rtol=0, atol=tolerance)
    assert (_randomised(mixer)(x) - before).abs().max() > 0.01


def test_bit_for_bit_on_the_split_path():
    mixer, x = MIXERS["cross"](), torch.randn(2, 6, 5, 8)
    mixer.set_state_fn(torch.nn.Identity())
    before = mixer(x)
    assert torch.equal(_add(mixer)(x), before)


@pytest.mark.parametrize("kind", MIXERS)
def test_scripted(kind):
    with set_scriptable(True):
        mixer = _randomised(_add(MIXERS[kind]())).eval()
    other, x = _add(MIXERS[kind]()).eval(), torch.randn(2, 6, 5, 8)
    other.load_state_dict(mixer.state_dict())
    y = torch.jit.script(mixer)(x)
    torch.testing.assert_close(y, mixer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y, other(x), rtol=1e-4, atol=1e-5)


def test_a_selection_larger_than_the_map_is_refused():
    adaptor = AdaptorT(4, points=7)
    assert adaptor(torch.randn(1, 1, 4, 1, 1, 7)).shape == (1, 1, 4, 1, 1, 7)
    for module in (adaptor, torch.jit.script(adaptor)):
        with pytest.raises(
            (ValueError, torch.jit.Error), match="selects 7 states, and the map has only 2 x 3; give larger"
        ):
            module(torch.randn(1, 1, 4, 1, 2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptorT(4, selection="best"), "unknown selection 'best': choose one of learned, static"),
        (lambda: AdaptorT(4, points=0), "points must be at least 1, got 0"),
        (lambda: AdaptorS(4, dilations=()), "dilations must be positive and at least one"),
        (lambda: SS2D(8, scan="cascade").set_adaptor_t(AdaptorT(16)), "the cascade scan has no states on one grid"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
