"""bias_act: torch's own numbers, every path against the reference, accuracy of the core's GELU and SiLU."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from tests.ops.agree import CORE, PATHS, assert_agrees, evaluate, every_isa, randn
from vssm.ops import bias_act, native, use

SHAPES = [(2, 3, 96), (5, 1), (1, 7), (3, 33), (600, 50), (2, 4097)]
ACTS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def arguments(shape, dtype=torch.float32, bias_dtype=None):
    return {"x": 3 * randn(*shape, dtype=dtype), "bias": randn(shape[-1], dtype=bias_dtype or dtype, seed=1)}


def function(act):
    return lambda x, bias=None: bias_act(x, bias, act)


@pytest.mark.parametrize("act", ACTS)
def test_reference_is_torch(act):
    t = arguments((4, 50), torch.float64)
    with use("reference"):
        assert torch.allclose(bias_act(**t, act=act), ACTS[act](t["x"] + t["bias"]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("act", ACTS)
def test_paths_agree_with_the_reference(path, dtype, act):
    for shape in SHAPES:
        (y,) = assert_agrees(function(act), arguments(shape, dtype), path)
        assert y.dtype == dtype and y.is_contiguous()
    assert_agrees(function(act), {"x": arguments((3, 5, 7), dtype)["x"]}, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", ACTS)
def test_half_precision(path, dtype, act):
    for bias_dtype in (dtype, torch.float32):
        (y,) = assert_agrees(function(act), arguments((7, 43), dtype, bias_dtype), path)
        assert y.dtype == dtype


@pytest.mark.parametrize("path", PATHS)
def test_autocast_keeps_the_dtype(path):
    half, bias = randn(3, 8, dtype=torch.bfloat16), randn(8)
    with use(path):
        expected = bias_act(half, bias)
        with torch.autocast("cpu", torch.bfloat16):
            got = bias_act(half, bias)
    assert got.dtype == torch.bfloat16 and torch.equal(got, expected)


@pytest.mark.parametrize("isa", every_isa())
@pytest.mark.parametrize("act", ["gelu", "silu"])
def test_absolute_error_over_the_whole_range(isa, act):
    """A rounding of the result, and no more than 1e-7 where the result is small. torch's own GELU is off by 1e-6."""
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.linspace(-200, 200, 4001)]).requires_grad_()
    exact = x.detach().double().requires_grad_()
    with native.use_isa(isa), use("core"):
        y = bias_act(x, act=act)
        (slope,) = torch.autograd.grad(y.sum(), x)
    expected = ACTS[act](exact)
    (expected_slope,) = torch.autograd.grad(expected.sum(), exact)
    negative = x < 0
    assert (y - expected)[negative].abs().max() < 1e-7
    assert ((y - expected) / expected)[x > 0.1].abs().max() < 4e-7
    assert (slope - expected_slope).abs().max() < 4e-7


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("act", ACTS)
def test_special_values(path, act):
    with use(path):
        y = bias_act(torch.tensor([0.0, 1e30, float("nan"), 1e-30, -200.0]), act=act)
    assert y[0] == 0 and y[1] == 1e30 and y[2].isnan() and abs(y[3]) <= 1e-30 and abs(y[4]) < 1e-7


@pytest.mark.parametrize("path", PATHS)
def test_strided_and_empty_input(path):
    t = arguments((4, 6, 10), torch.float64)
    assert_agrees(lambda x, bias: bias_act(x.transpose(0, 1)[:, ::2, ::2], bias[::2]), t, path)
    with use(path):
        assert bias_act(torch.empty(0, 4), torch.ones(4)).shape == (0, 4)


@pytest.mark.parametrize("path", PATHS)
def test_opcheck(path):
    t = {k: v.requires_grad_() for k, v in arguments((3, 10)).items()}
    opcheck(torch.ops.vssm.bias_act.default, (t["x"], t["bias"], "gelu", path))
    with torch.no_grad():
        opcheck(torch.ops.vssm.bias_act_backward.default, (t["x"], t["x"], t["bias"], "silu", path))
        opcheck(torch.ops.vssm.bias_act_backward.default, (t["x"], t["x"], None, "relu", path))


def test_scripted_and_compiled_calls_are_the_eager_one():
    x, bias = arguments((4, 30)).values()
    eager = bias_act(x, bias, "gelu")
    assert torch.equal(torch.jit.script(bias_act)(x, bias, "gelu"), eager)
    compiled = torch.compile(bias_act, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, bias, "gelu"), eager, atol=2e-6)


@pytest.mark.parametrize("path", CORE)
def test_result_does_not_depend_on_the_number_of_threads(path):
    tensors = arguments((1200, 50))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = evaluate(function("gelu"), tensors, path)
        torch.set_num_threads(2)
        two = evaluate(function("gelu"), tensors, path)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0][0], two[0][0])
    assert all(torch.equal(one[1][k], two[1][k]) for k in one[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act": "tanh"}, "unknown act 'tanh': choose one of gelu, silu, relu"),
        ({"bias": torch.ones(3)}, r"bias must be \(4,\), one number per channel of x, got \(3,\)"),
        ({"x": torch.ones(2, 4, dtype=torch.int32)}, "x has dtype torch.int32; supported: float32"),
        ({"x": torch.tensor(1.0)}, r"x must be \(\.\.\., C\), got a scalar"),
        ({"bias": torch.ones(4, device="meta")}, "bias is on meta but x is on cpu"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        bias_act(**({"x": torch.ones(2, 4)} | change))
