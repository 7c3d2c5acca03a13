"""The linear layer of the core against float64, on every instruction set, for every way it cuts its work."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.agree import every_isa, needs_core
from vssm.ops import dispatch, linear, native, use
from vssm.ops.linear import core

ACTS = {"none": lambda y: y, "gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def arguments(rows, inner, channels, seed=0):
    """x with rows that lie apart, weight, bias, residual."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner + 3, generator=g)[:, :inner]
    return x, *(torch.randn(s, generator=g) for s in ((channels, inner), (channels,), (rows, channels)))


def expected(x, weight, bias, act, residual):
    y = ACTS[act](F.linear(x.double(), weight.double(), None if bias is None else bias.double()))
    return y if residual is None else y + residual.double()


@needs_core
@pytest.mark.parametrize("isa", every_isa())
@pytest.mark.parametrize("rows", [1, 4, 5, 16, 20, 49, 255, 256, 300])  # dots, panels of x, panels of the weight
def test_every_shape_agrees_with_float64(isa, rows):
    with native.use_isa(isa), torch.inference_mode(), use("core"):
        for i, (inner, channels) in enumerate(itertools.product((1, 15, 16, 33, 96), (1, 7, 16, 18, 33, 48, 64, 104))):
            act = list(ACTS)[i % 4]
            x, weight, bias, residual = arguments(rows, inner, channels, seed=i)
            for b, r in ((None, None), (bias, None), (None, residual), (bias, residual)):
                truth = expected(x, weight, b, act, r)
                packed = core.forward(x, weight, b, r, act, packed=core.pack(weight))
                for y in (linear(x, weight, b, act, r), packed):
                    assert y.dtype == torch.float32 and y.is_contiguous()
                    error = float((y - truth).abs().max() / truth.abs().max().clamp(min=1))
                    assert error < 2e-6, (inner, channels, act, b is None, r is None)


@needs_core
@pytest.mark.parametrize("isa", every_isa())
def test_columns_are_taken_as_they_are(isa):
    with native.use_isa(isa), torch.inference_mode():
        for rows, inner, channels in ((1, 5, 3), (49, 33, 20), (196, 16, 40), (254, 7, 9), (300, 12, 9)):
            x, weight, bias, residual = arguments(rows, inner, channels)
            columns = torch.zeros(inner, rows + 5)[:, :rows].copy_(x.t())
            y = core.forward(columns.t(), weight, bias, residual, "gelu")
            error = float((y - expected(x, weight, bias, "gelu", residual)).abs().max())
            assert error < 1e-4, (rows, inner, channels)
            if rows < core.FEW_ROWS and rows > 1:  # and written as such
                out = torch.full((channels, rows + 3), 7.0)
                core.forward(x, weight, bias, None, "gelu", out=out[:, :rows].t())
                error = float((out[:, :rows].t() - expected(x, weight, bias, "gelu", None)).abs().max())
                assert error < 1e-4 and bool((out[:, rows:] == 7).all()), (rows, inner, channels)


@needs_core
def test_residual_may_be_the_output():
    for rows in (50, 300):
        x, weight, bias, residual = arguments(rows, 33, 40)
        for act in ACTS:
            truth = expected(x, weight, bias, act, residual)
            out = residual.clone()
            core.forward(x, weight, bias, out, act, out=out)
            torch.testing.assert_close(out.double(), truth, rtol=2e-6, atol=2e-5)


@needs_core
def test_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    try:
        for rows in (49, 200, 3000):
            x, weight, bias, residual = arguments(rows, 70, 130)
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(core.forward(x, weight, bias, residual, "gelu"))
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(before)


@needs_core
def test_nan_and_inf_stay_in_their_row():
    for rows in (50, 300):
        x, weight, bias, residual = arguments(rows, 33, 40)
        clean = core.forward(x, weight, bias, residual, "none")
        x = x.clone()
        x[3], x[7, 2] = float("nan"), float("inf")
        y = core.forward(x, weight, bias, residual, "none")
        assert torch.isnan(y[3]).all() and not torch.isfinite(y[7]).any()
        others = [i for i in range(rows) if i not in (3, 7)]
        assert torch.equal(y[others], clean[others])


def test_more_dimensions_training_and_half_precision():
    x, weight, bias, residual = arguments(60, 12, 9)
    x, residual = x.reshape(3, 4, 5, 12), residual.reshape(3, 4, 5, 9)
    truth = expected(x, weight, bias, "gelu", residual)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, bias, "gelu", residual).double(), truth, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight, bias).dtype == torch.bfloat16
    weight.requires_grad_()
    y = linear(x, weight, bias, "relu", residual)
    (grad,) = torch.autograd.grad(y.sum(), weight)
    truth = torch.autograd.grad(expected(x, weight, bias, "relu", residual).sum(), weight)[0]
    torch.testing.assert_close(grad, truth, rtol=1e-5, atol=1e-5)


@needs_core
def test_flops():
    x, weight, bias, residual = arguments(60, 12, 9)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * 60 * 12 * 9


@needs_core
def test_without_wide_vectors_torch_is_preferred_in_silence_and_a_demand_is_met(recwarn):
    def taken():
        dispatch.reset()
        return dispatch.explain("linear").choices[0].path, dispatch.choose("linear", torch.zeros(1))

    try:
        with native.use_isa(next(iter(["baseline"] if "baseline" in str(every_isa()) else [native.isa()]))):
            if native.isa() in ("avx2", "avx512"):
                pytest.skip("this build has no narrower instruction set")
            assert taken() == ("torch", "torch")
            assert "as fast" in str(dispatch.explain("linear"))
            with use("core"):
                assert dispatch.choose("linear", torch.zeros(1), "core") == "core"
                assert dispatch.explain("linear").choices[0].path == "core"
        assert not [w for w in recwarn if issubclass(w.category, dispatch.SlowPathWarning)]
    finally:
        dispatch.reset()


@pytest.mark.parametrize(
    "index, value, message",
    [
        (
            0,
            torch.zeros(4, 11),
            r"x must be \(..., C\) and weight \(C', C\) with the same C, got \(4, 11\) and \(9, 12\)",
        ),
        (1, torch.zeros(9), r"weight \(C', C\)"),
        (2, torch.zeros(8), r"bias must be \(9,\)"),
        (3, "tanh", r"unknown act 'tanh': choose one of none, gelu, silu, relu"),
        (4, torch.zeros(9), r"residual must be \(60, 9\) like the result, got \(9,\)"),
        (1, torch.zeros(9, 12, device="meta"), "weight is on meta but x is on cpu"),
    ],
)
def test_bad_arguments_are_named(index, value, message):
    x, weight, bias, residual = arguments(60, 12, 9)
    args = [x, weight, bias, "none", residual]
    args[index] = value
    with pytest.raises(ValueError, match=message):
        linear(*args)
