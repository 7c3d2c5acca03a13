"""causal_conv1d: torch's own numbers, both directions, every path against the reference."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.agree import CORE, PATHS, assert_agrees, evaluate, every_isa, randn
from vssm.ops import causal_conv1d, native, use
from vssm.ops.dispatch import PathUnavailable

# (batch, channels, length, width): odd numbers of channels, one step, fewer steps than taps, more than one task takes.
SHAPES = [(2, 33, 7, 4), (1, 3, 1, 4), (2, 16, 2, 3), (1, 20, 50, 2), (1, 600, 230, 4)]
MODES = [("none", False), ("silu", False), ("none", True), ("silu", True)]


def arguments(shape, dtype=torch.float32, weight_dtype=None):
    batch, channels, length, width = shape
    weight_dtype = weight_dtype or dtype
    return {
        "x": randn(batch, length, channels, dtype=dtype).mT,
        "weight": randn(channels, width, dtype=weight_dtype, seed=1) / 2,
        "bias": randn(channels, dtype=weight_dtype, seed=2),
    }


def conv(act, reverse):
    return lambda x, weight, bias: causal_conv1d(x, weight, bias, act, reverse)


@pytest.mark.parametrize(("act", "reverse"), MODES)
def test_reference_is_torch(act, reverse):
    t = arguments((2, 5, 9, 4), torch.float64)
    x = t["x"].flip(-1) if reverse else t["x"]
    expected = F.conv1d(x, t["weight"][:, None], t["bias"], padding=3, groups=5)[..., :9]
    expected = F.silu(expected) if act == "silu" else expected
    expected = expected.flip(-1) if reverse else expected
    with use("reference"):
        assert torch.allclose(conv(act, reverse)(**t), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("act", "reverse"), MODES)
def test_paths_agree_with_the_reference(path, dtype, act, reverse):
    for shape in SHAPES:
        (y,) = assert_agrees(conv(act, reverse), arguments(shape, dtype), path)
        assert y.dtype == dtype and y.mT.is_contiguous()


@pytest.mark.parametrize("isa", every_isa())
def test_every_instruction_set(isa):
    with native.use_isa(isa):
        for shape in SHAPES:
            assert_agrees(conv("silu", True), arguments(shape), "core")


@pytest.mark.parametrize("path", PATHS)
def test_no_bias_and_any_strides(path):
    t = arguments((2, 9, 11, 4), torch.float64)
    assert_agrees(causal_conv1d, {"x": t["x"].contiguous(), "weight": t["weight"]}, path)

    def cropped(x, weight):
        return causal_conv1d(x[:, :, 1::2], weight, act="silu", reverse=True)

    assert_agrees(cropped, {"x": t["x"], "weight": t["weight"]}, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(path, dtype):
    for weight_dtype in (dtype, torch.float32):
        for act, reverse in MODES:
            (y,) = assert_agrees(conv(act, reverse), arguments((2, 19, 6, 4), dtype, weight_dtype), path)
            assert y.dtype == dtype


@pytest.mark.parametrize("path", PATHS)
def test_autocast_changes_nothing(path):
    t = arguments((1, 8, 5, 4))
    with use(path):
        expected = causal_conv1d(**t, act="silu")
        with torch.autocast("cpu", torch.bfloat16):
            got = causal_conv1d(**t, act="silu")
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_scripted_and_compiled_calls_are_the_eager_one():
    x, weight, bias = arguments((1, 4, 6, 4)).values()
    eager = causal_conv1d(x, weight, bias, "silu", True)
    assert torch.equal(torch.jit.script(causal_conv1d)(x, weight, bias, "silu", True), eager)
    compiled = torch.compile(causal_conv1d, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, bias, "silu", True), eager)


@pytest.mark.parametrize("path", CORE)
def test_result_does_not_depend_on_the_number_of_threads(path):
    tensors = arguments((3, 500, 301, 4))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = evaluate(conv("silu", True), tensors, path)
        torch.set_num_threads(2)
        two = evaluate(conv("silu", True), tensors, path)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0][0], two[0][0])
    assert all(torch.equal(one[1][k], two[1][k]) for k in one[1])


@pytest.mark.parametrize("path", CORE)
def test_another_width_runs_on_torch_and_is_refused_when_the_core_is_demanded(path):
    t = arguments((1, 4, 9, 7), torch.float64)
    y = causal_conv1d(**t)
    with use("reference"):
        assert torch.allclose(y, causal_conv1d(**t), rtol=0, atol=1e-14)
    with use(path), pytest.raises(PathUnavailable, match="kernels of width 2, 3, 4, not 7"):
        causal_conv1d(**t)


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    x, weight, bias = (t.requires_grad_() for t in arguments((2, 4, 6, 4)).values())
    with FlopCounterMode(display=False) as counter:
        y = causal_conv1d(x, weight, bias, "silu")
        assert counter.get_total_flops() == 2 * 4 * x.numel()
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * x.numel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4, 5)}, r"x must be \(B, C, L\), got \(4, 5\)"),
        ({"weight": torch.ones(5, 4)}, r"weight must be \(4, W\) for x \(1, 4, 5\), got \(5, 4\)"),
        ({"bias": torch.ones(3)}, r"bias must be \(4,\)"),
        ({"act": "gelu"}, "unknown act 'gelu': choose one of none, silu"),
        ({"x": torch.ones(1, 4, 5, dtype=torch.uint8)}, "x has dtype torch.uint8; supported: float32"),
        ({"x": torch.ones(1, 4, 0)}, r"x is empty: \(1, 4, 0\)"),
        ({"weight": torch.ones(4, 4, device="meta")}, "weight is on meta but x is on cpu"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**({"x": torch.ones(1, 4, 5), "weight": torch.ones(4, 4)} | change))
