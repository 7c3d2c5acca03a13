"""Batch normalisation with ReLU, residual and linear layer against the equations, running statistics included."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.agree import every_isa, needs_core, randn
from vssm.ops import batch_norm, batch_norm_linear, native, use
from vssm.ops.batch_norm import core

PATHS = ["reference", "torch", pytest.param("core", marks=needs_core)]


def arguments(shape=(3, 5, 7, 21), out=9, dtype=torch.float64):
    channels = shape[-1]
    tensors = {
        "x": randn(*shape, dtype=dtype) * 2 + 3,
        "weight": randn(channels, dtype=dtype, seed=1),
        "bias": randn(channels, dtype=dtype, seed=2),
        "residual": randn(*shape, dtype=dtype, seed=3),
        "linear": randn(out, channels, dtype=dtype, seed=4),
    }
    return {name: t.requires_grad_() for name, t in tensors.items()}


def run(form, t, path):
    """[result, running statistics, gradients]; form is an act, "residual" or "linear"."""
    mean, var = torch.full_like(t["weight"], 0.5).detach(), torch.full_like(t["weight"], 2.0).detach()
    inputs = [t["x"], t["weight"], t["bias"]]
    with use(path):
        if form == "linear":
            inputs.append(t["linear"])
            y = batch_norm_linear(t["x"], mean, var, t["weight"], t["bias"], t["linear"], 0.2, 1e-3, "relu")
        elif form == "residual":
            inputs.append(t["residual"])
            y = batch_norm(t["x"], mean, var, t["weight"], t["bias"], 0.2, 1e-3, "none", t["residual"])
        else:
            y = batch_norm(t["x"], mean, var, t["weight"], t["bias"], 0.2, 1e-3, form)
    cotangent = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y, mean, var, *torch.autograd.grad(y, inputs, cotangent)]


def written_out(form, t):
    """The same as the equations say it: biased variance for the rows, unbiased for the running one."""
    mean, var = torch.full_like(t["weight"], 0.5).detach(), torch.full_like(t["weight"], 2.0).detach()
    inputs = [t["x"], t["weight"], t["bias"]]
    x = t["x"].flatten(0, -2)
    centre, spread = x.mean(0), x.var(0, unbiased=False)
    y = ((x - centre) * (spread + 1e-3).rsqrt() * t["weight"] + t["bias"]).view_as(t["x"])
    mean, var = 0.8 * mean + 0.2 * centre.detach(), 0.8 * var + 0.2 * x.detach().var(0)
    y = F.relu(y) if form in ("relu", "linear") else y
    if form == "residual":
        y, inputs = y + t["residual"], [*inputs, t["residual"]]
    if form == "linear":
        y, inputs = F.linear(y, t["linear"]), [*inputs, t["linear"]]
    cotangent = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y, mean, var, *torch.autograd.grad(y, inputs, cotangent)]


def assert_agrees(found, expected, tolerance):
    names = ("y", "running_mean", "running_var", "dx", "dweight", "dbias", "dlast")[: len(expected)]
    for name, f, e in zip(names, found, expected, strict=True):
        error = float((f - e).detach().abs().max() / e.detach().abs().max())
        assert error <= tolerance, f"{name}: {error}"


FORMS = pytest.mark.parametrize("form", ["none", "relu", "residual", "linear"])


@FORMS
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(3, 5, 7, 21), (2, 1), (4000, 6), (1, 2, 1, 300)])
def test_agrees_with_torch(form, path, shape, monkeypatch):
    monkeypatch.setattr(core, "CHUNK_ELEMENTS", 21 * 16)
    t = arguments(shape)
    assert_agrees(run(form, t, path), written_out(form, t), 1e-10)


@needs_core
@FORMS
@pytest.mark.parametrize("isa", every_isa())
def test_float32_on_every_instruction_set(form, isa):
    t = {name: v.detach().float().requires_grad_() for name, v in arguments((6, 40, 50, 20)).items()}
    exact = {name: v.detach().double().requires_grad_() for name, v in t.items()}
    with native.use_isa(isa):
        found = run(form, t, "core")
    # A normalised value within rounding of 0 may fall on the other side of the ReLU; its gradient is then all wrong.
    expected = written_out(form, exact)
    assert_agrees(found[:3], expected[:3], 1e-6)
    if form in ("none", "residual"):
        assert_agrees(found, expected, 1e-5)


@needs_core
def test_a_large_mean_costs_no_accuracy():
    x = randn(50000, 8) + 1000
    mean, var = torch.zeros(8), torch.zeros(8)
    with use("core"):
        y = batch_norm(x, mean, var, torch.ones(8), torch.zeros(8), momentum=1.0)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact.var(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(y.double(), (exact - exact.mean(0)) / exact.std(0), rtol=0, atol=2e-4)


@pytest.mark.parametrize("path", PATHS)
def test_without_running_statistics_and_with_strides(path):
    t = arguments()
    x = t["x"].detach()
    expected = written_out("relu", t)[0]
    with use(path), torch.no_grad():
        y = batch_norm(x.transpose(1, 2), None, None, t["weight"], t["bias"], 0.2, 1e-3, "relu")
    torch.testing.assert_close(y.transpose(1, 2), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_the_composition_gives(dtype):
    t = {name: v.detach().float() for name, v in arguments().items()}
    with torch.autocast("cpu", dtype=dtype):
        y = batch_norm_linear(t["x"].to(dtype), None, None, t["weight"], t["bias"], t["linear"], act="relu")
    exact = batch_norm_linear(t["x"], None, None, t["weight"], t["bias"], t["linear"], act="relu")
    assert y.dtype == dtype
    assert (y.float() - exact).abs().max() <= 0.03 * exact.abs().max()  # a few roundings of half precision


@needs_core
def test_flops():
    t = {name: v.detach().float().requires_grad_() for name, v in arguments().items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        batch_norm_linear(t["x"], None, None, t["weight"], t["bias"], t["linear"])
    assert counter.get_total_flops() == 2 * 105 * (5 * 21 + 21 * 9)


def test_compiles_in_one_graph():
    t = {name: v.detach() for name, v in arguments().items()}
    run_it = torch.compile(batch_norm, fullgraph=True, backend="aot_eager")
    statistics = [torch.zeros(21, dtype=torch.float64), torch.ones(21, dtype=torch.float64)]
    compiled = [s.clone() for s in statistics]
    expected = batch_norm(t["x"], *statistics, t["weight"], t["bias"], act="relu", residual=t["residual"])
    found = run_it(t["x"], *compiled, t["weight"], t["bias"], act="relu", residual=t["residual"])
    torch.testing.assert_close([found, *compiled], [expected, *statistics])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.ones(1, 21)}, r"more than one value per channel, got \(1, 21\)"),
        ({"act": "gelu"}, r"unknown act 'gelu': choose one of none, relu"),
        ({"weight": torch.ones(20)}, r"weight must be \(21,\)"),
        ({"bias": torch.ones(1)}, r"bias must be \(21,\)"),
        ({"bias": torch.ones(21, device="meta")}, "bias is on meta but x is on cpu"),
        ({"residual": torch.ones(2, 1)}, r"residual must have the shape of x, \(2, 21\), got \(2, 1\)"),
    ],
)
def test_bad_arguments_are_named(change, message):
    given = {"x": torch.ones(2, 21), "weight": torch.ones(21), "bias": torch.ones(21)} | change
    with pytest.raises(ValueError, match=message):
        batch_norm(running_mean=None, running_var=None, **given)


def test_a_linear_weight_that_does_not_fit():
    with pytest.raises(ValueError, match=r"weight must be \(C', C\) with C = 21 as in x, got \(9, 20\)"):
        batch_norm_linear(torch.ones(2, 21), None, None, torch.ones(21), torch.ones(21), torch.ones(9, 20))
    with pytest.raises(ValueError, match="weight is on meta but x is on cpu"):
        batch_norm_linear(
            torch.ones(2, 21), None, None, torch.ones(21), torch.ones(21), torch.ones(9, 21, device="meta")
        )
