"""Scan, fusion and readout in one pass against their composition, and when that pass is taken."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.agree import every_isa, needs_core
from vssm.ops import BIDIRECTIONAL, CROSS, RASTER, native, ss2d_fusion, ss2d_readout, ss2d_states, state_fusion, use
from vssm.ops.scan_fusion import core


def arguments(
    batch=2, channels=20, height=9, width=7, rank=3, dilations=(1, 3, 5), dtype=torch.float32, routes=1, states=1
):
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    x = normal(batch, channels, height, width).to(memory_format=torch.channels_last)
    weights = (
        0.2 * normal(routes, rank + 2 * states, channels),
        normal(routes, channels, rank),
        normal(routes, channels),
    )
    A = -normal(routes * channels, states).exp()
    kernels = [normal(routes * channels * states, 1, 3, 3) for _ in dilations]
    return [x, *weights, A, normal(routes * channels), kernels, normal(len(dilations)), list(dilations)]


def composition(x, x_proj, dt_weight, dt_bias, A, D, kernels, alphas, dilations, routes=RASTER):
    """In float64, one operator after the other."""
    x, x_proj, dt_weight, dt_bias, A, D, alphas = (t.double() for t in (x, x_proj, dt_weight, dt_bias, A, D, alphas))
    with use("torch"):
        h, C = ss2d_states(x, x_proj, dt_weight, dt_bias, A, routes)
        fused = state_fusion(h.flatten(1, 3), [k.double() for k in kernels], alphas, dilations)
        return ss2d_readout(fused.unflatten(1, h.shape[1:4]), C, x, D)


def error(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


@needs_core
@pytest.mark.parametrize("isa", every_isa())
@pytest.mark.parametrize("dilations", [(1, 3, 5), (1,), (2, 4)])
@pytest.mark.parametrize("size", [(1, 16, 14, 14), (2, 20, 9, 7), (1, 33, 3, 2), (1, 5, 1, 1), (1, 17, 40, 3)])
def test_one_pass_equals_the_composition(isa, dilations, size):
    with native.use_isa(isa), torch.inference_mode():
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
            args = arguments(*size, dilations=dilations, dtype=dtype)
            assert core.fits(args[2], args[4], args[6], RASTER)
            assert error(ss2d_fusion(*args), composition(*args)) < tolerance


def test_every_other_case_is_composed():
    for extra in ({"routes": 4, "states": 2}, {"routes": 1, "states": 3}):
        args = arguments(dtype=torch.float64, **extra)
        routes = BIDIRECTIONAL if extra["routes"] == 4 else RASTER
        assert not core.fits(args[2], args[4], args[6], routes)
        with torch.inference_mode():
            assert error(ss2d_fusion(*args, routes), composition(*args, routes)) < 1e-13
    for routes in (RASTER, CROSS):
        args = arguments(dtype=torch.float64, routes=len(routes))
        tensors = [*args[:6], *args[6], args[7]]
        for tensor in tensors:
            tensor.requires_grad_()
        found = torch.autograd.grad(ss2d_fusion(*args, routes).square().sum(), tensors)
        expected = torch.autograd.grad(composition(*args, routes).square().sum(), tensors)
        assert max(error(*pair) for pair in zip(found, expected)) < 1e-12


def test_routes_of_one_state_are_taken_one_by_one(monkeypatch):
    """Each with its own rows of every parameter; no map of all states is made."""
    args = arguments(dtype=torch.float64, routes=4)
    monkeypatch.setattr("vssm.ops.scan_fusion.state_fusion", None)
    with torch.inference_mode():
        assert error(ss2d_fusion(*args, CROSS), composition(*args, CROSS)) < 1e-13


@needs_core
def test_half_precision_threads_and_flops():
    args = arguments(channels=40, dtype=torch.float32)
    with torch.inference_mode():
        half = [args[0].bfloat16(), *args[1:]]
        assert ss2d_fusion(*half).dtype == torch.float32
        assert error(ss2d_fusion(*half), composition(*args)) < 0.05
        before = torch.get_num_threads()
        try:
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(ss2d_fusion(*args))
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        finally:
            torch.set_num_threads(before)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ss2d_fusion(*args)
    projection, rest = 40 * 5, 40 * (3 + 7 + 27)
    assert counter.get_total_flops() == 2 * 2 * 63 * (projection + rest)


def test_wrong_shapes_are_named():
    args = arguments()
    for index, value, message in (
        (4, torch.zeros(19, 1), r"A must be \(K\*C, N\) with K\*C = 20"),
        (6, args[6][:2], "2 kernels for 3 dilations"),
        (8, [1, 0, 5], "dilations must be positive"),
        (0, args[0][:, :, :0], "x must not be empty"),
    ):
        wrong = list(args)
        wrong[index] = value
        with pytest.raises(ValueError, match=message), torch.no_grad():
            ss2d_fusion(*wrong)
    args = arguments(routes=4)
    for index, value, message in (
        (5, torch.zeros(20), r"D must be \(80,\)"),
        (6, [kernel[:20] for kernel in args[6]], r"kernels\[0\] must be \(80, 1, 3, 3\)"),
        (3, args[3][:3], "dt_bias must be"),
    ):
        wrong = list(args)
        wrong[index] = value
        with pytest.raises(ValueError, match=message), torch.no_grad():
            ss2d_fusion(*wrong, CROSS)
