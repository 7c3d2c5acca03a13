"""Initial values follow the rules that the official models were trained from."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from vssm.nn import SS2D


class Called(TorchFunctionMode):
    """The names of the functions that were called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_mamba():
    mixer = SS2D(384, d_state=4, ssm_ratio=1.0)
    weight = mixer.dt_proj_weight
    assert weight.abs().max() <= 24**-0.5
    assert weight.std() == pytest.approx(24**-0.5 / math.sqrt(3), rel=0.02)
    dt = F.softplus(mixer.dt_proj_bias)
    assert 1e-3 * 0.999 < dt.min() < 1.2e-3 and 0.09 < dt.max() < 0.1 * 1.001
    assert dt.log().mean() == pytest.approx(math.log(1e-2), abs=0.1)  # log-uniform
    expected = torch.arange(1, 5).log().expand(4 * 384, 4)
    torch.testing.assert_close(mixer.A_log.detach(), expected)
    assert (mixer.D == 1).all()
    assert mixer.x_proj_weight.std() == pytest.approx(384**-0.5 / math.sqrt(3), rel=0.02)
    assert not torch.equal(weight[0], weight[1])


def test_on_the_meta_device_nothing_is_drawn():
    """Where a draw of random numbers would take milliseconds for every tensor."""
    before = torch.get_rng_state()
    with torch.device("meta"), Called() as called:
        mixer = SS2D(64)
    assert all(p.is_meta for p in mixer.parameters()) and torch.equal(torch.get_rng_state(), before)
    assert not called.names & {"exp_", "clamp_", "expm1", "log"}, called.names


@torch.no_grad()
def test_rand():
    mixer = SS2D(128, d_state=4, ssm_ratio=1.0, init="rand")
    assert mixer.A_log.std() == pytest.approx(1, rel=0.1) and abs(float(mixer.A_log.mean())) < 0.1
    assert mixer.dt_proj_weight.std() == pytest.approx(0.1, rel=0.1)
    assert mixer.dt_proj_bias.std() == pytest.approx(0.1, rel=0.2)
    assert (mixer.D == 1).all()


@torch.no_grad()
def test_zero():
    mixer = SS2D(128, init="zero")
    assert (mixer.A_log == 0).all()
    for p in (mixer.dt_proj_weight, mixer.dt_proj_bias):
        assert p.min() >= 0 and p.max() < 0.1
        assert p.mean() == pytest.approx(0.05, rel=0.1)


@torch.no_grad()
def test_linear_layers_of_a_mixer():
    mixer = SS2D(128)
    for layer in (mixer.in_proj, mixer.out_proj):
        assert layer.weight.std() == pytest.approx(0.02, rel=0.05)
        assert layer.bias is None
    bound = 1 / 3  # the PyTorch default of a 3x3 depthwise convolution: 1/sqrt(9)
    assert 0.9 * bound < mixer.conv.weight.abs().max() <= bound
