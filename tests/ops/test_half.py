"""Half precision on the CPU: torch's products with what follows in place, rounding, norms."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vssm
from tests.ops.agree import needs_core
from vssm.ops import layer_norm, linear, mlp, native, use
from vssm.ops.layer_norm import reference as layer_norm_reference
from vssm.ops.linear import bias_act, half, reference
from vssm.ops.mlp import reference as mlp_reference

pytestmark = needs_core
ACTS = ("none", "gelu", "silu", "relu")


def _arguments(dtype, rows=(2, 3, 5), dim=24, hidden=40):
    torch.manual_seed(0)
    shapes = ((*rows, dim), (hidden, dim), (hidden,), (dim, hidden), (dim,), (*rows, dim))
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_where_torch_does(dtype):
    """Equal to the composition but for the last bit of GELU and SiLU; no argument is written to."""
    x, w1, b1, w2, b2, residual = _arguments(dtype)
    given = [t.clone() for t in (x, w1, b1, w2, b2, residual)]
    tolerance = 2 * torch.finfo(dtype).eps
    with torch.inference_mode():
        assert half.takes(x, w1, b1)
        for act in ACTS:
            for extra in (None, torch.randn(2, 3, 5, 40).to(dtype)):
                want = reference.linear(x, w1, b1, extra, act)
                torch.testing.assert_close(linear(x, w1, b1, act, extra), want, rtol=tolerance, atol=tolerance)
        for extra in (None, residual):
            want = mlp_reference.mlp(
                *(t.double() for t in (x, w1, b1, w2, b2)), None if extra is None else extra.double()
            )
            got, plain = mlp(x, w1, b1, w2, b2, extra), mlp_reference.mlp(x, w1, b1, w2, b2, extra)
            assert got.dtype is dtype
            assert (got - want).norm() < 1.05 * (plain - want).norm()
    for before, after in zip(given, (x, w1, b1, w2, b2, residual), strict=True):
        assert torch.equal(before, after)


def test_under_autocast_dtypes_are_those_of_torch():
    x, w1, b1, w2, b2, residual = _arguments(torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert half.takes(x, w1, b1)
        for extra in (None, residual, residual.bfloat16()):
            got, want = mlp(x, w1, b1, w2, b2, extra), mlp_reference.mlp(x, w1, b1, w2, b2, extra)
            assert got.dtype is want.dtype
            torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


def test_maps_that_are_not_contiguous_and_empty_batches():
    x, w1, b1, _, _, _ = _arguments(torch.bfloat16)
    with torch.inference_mode():
        turned = x.permute(2, 1, 0, 3)
        want = reference.linear(turned, w1, b1, None, "gelu")
        torch.testing.assert_close(linear(turned, w1, b1, "gelu"), want, rtol=0.02, atol=0.02)
        assert linear(x[:0], w1, b1, "gelu").shape == (0, 3, 5, 40)


def test_flops_are_counted():
    x, w1, b1, w2, b2, residual = _arguments(torch.bfloat16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mlp(x, w1, b1, w2, b2, residual)
    assert counter.get_total_flops() == 2 * 30 * (24 * 40 + 40 * 24)


def test_counting_runs_the_layers_one_by_one():
    """Of a network in half precision, on fake tensors."""
    model = vssm.create_model("spatial_mamba_nano", num_classes=3)
    half, single = vssm.complexity(model.bfloat16(), 64), vssm.complexity(model.float(), 64)
    assert half == single and single.by_operator["batch_norm"] > 0


@pytest.mark.parametrize("change", ["gradients", "demand", "float32", "mixed", "vmap", "jvp", "compiled"])
def test_is_not_taken(change, monkeypatch):
    x, w1, b1, w2, b2, residual = _arguments(torch.float32 if change == "float32" else torch.bfloat16)
    if change == "mixed":
        w1, b1, w2, b2 = (t.float() for t in (w1, b1, w2, b2))
        x = residual = residual.float()
    monkeypatch.setattr(half, "mlp", None)  # a call of it fails

    def run(x):
        return mlp(x, w1, b1, w2, b2, residual)

    with torch.set_grad_enabled(change == "gradients"):
        if change == "vmap":
            y = torch.vmap(lambda x: mlp(x, w1, b1, w2, b2))(x)
        elif change == "jvp":
            y, tangent = torch.func.jvp(run, (x,), (x,))
            assert tangent.abs().max() > 0
        elif change == "compiled":
            y = torch.compile(run, backend="eager", fullgraph=True)(x)
        elif change == "demand":
            with use("torch"):
                y = run(x)
        else:
            y = run(x)
    assert y.isfinite().all()


@pytest.mark.parametrize("isa", native.isas() if native.available() else [])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_core_rounds_as_torch(isa, dtype):
    """Ties, results that overflow, infinities and NaN; whole vectors and the rest of a row. Where the processor has an
    instruction that rounds to bfloat16, this is what runs."""
    torch.manual_seed(0)
    step = torch.finfo(dtype).eps
    ties = torch.tensor([1 + step / 2, 1 + 3 * step / 2, -1 - step / 2, 1 + step / 2 + 1e-6])
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -3.4e38, 65519.0, 65520.0])
    x = torch.cat([ties, special, torch.randn(41) * 10.0 ** torch.arange(-20, 21)]).view(1, 53)
    with native.use_isa(isa):
        y = bias_act.forward(x, None, "none", out=torch.empty(x.shape, dtype=dtype))
        back = bias_act.forward(y, None, "none", out=torch.empty(x.shape))
    torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back, y.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels", [5, 96, 200, 4100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normalised_row_does_not_depend_on_its_neighbours(channels, dtype):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(37, channels).to(dtype),
        torch.randn(channels).to(dtype),
        torch.randn(channels).to(dtype),
    )
    with torch.no_grad(), use("core"):
        together = layer_norm(x, weight, bias)
        alone = torch.cat([layer_norm(row, weight, bias) for row in x.split(1)])
    assert torch.equal(together, alone)
    want = layer_norm_reference.layer_norm(x.double(), weight.double(), bias.double(), None, 1e-5)
    torch.testing.assert_close(together, want.to(dtype), rtol=1e-5 if dtype is torch.float32 else 8e-3, atol=1e-5)
