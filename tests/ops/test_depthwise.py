"""depthwise_conv3x3: torch's own numbers, every path against the reference."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.agree import CORE, PATHS, assert_agrees, evaluate, every_isa, needs_core, randn
from vssm.ops import depthwise_conv3x3, native, use

# (batch, channels, height, width): odd widths, one row, one column, one pixel, more rows than one task takes.
SHAPES = [(2, 33, 5, 7), (1, 16, 1, 6), (1, 3, 6, 1), (2, 20, 1, 1), (1, 17, 2, 2), (1, 96, 40, 40)]
MODES = [("none", False), ("silu", False), ("none", True), ("silu", True)]


def arguments(shape, dtype=torch.float32, weight_dtype=None):
    weight_dtype = weight_dtype or dtype
    return {
        "x": randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last),
        "weight": randn(shape[1], 1, 3, 3, dtype=weight_dtype, seed=1) / 3,
        "bias": randn(shape[1], dtype=weight_dtype, seed=2),
    }


def conv(act, residual):
    return lambda x, weight, bias: depthwise_conv3x3(x, weight, bias, act, residual)


@pytest.mark.parametrize(("act", "residual"), MODES)
def test_reference_is_torch(act, residual):
    t = arguments((2, 5, 4, 6), torch.float64)
    expected = F.conv2d(t["x"], t["weight"], t["bias"], padding=1, groups=5)
    expected = F.silu(expected) if act == "silu" else expected
    expected = t["x"] + expected if residual else expected
    with use("reference"):
        assert torch.allclose(conv(act, residual)(**t), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("act", "residual"), MODES)
def test_paths_agree_with_the_reference(path, dtype, act, residual):
    for shape in SHAPES:
        # The gradient of a weight is a sum over all pixels; its error grows with their number.
        (y,) = assert_agrees(conv(act, residual), arguments(shape, dtype), path)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("isa", every_isa())
def test_every_instruction_set(isa):
    with native.use_isa(isa):
        for shape in SHAPES:
            assert_agrees(conv("silu", True), arguments(shape), "core")


@pytest.mark.parametrize("path", PATHS)
def test_no_bias_and_any_strides(path):
    t = arguments((2, 9, 5, 6), torch.float64)
    assert_agrees(depthwise_conv3x3, {"x": t["x"].contiguous(), "weight": t["weight"]}, path)

    def cropped(x, weight):
        return depthwise_conv3x3(x[:, :, 1:, ::2], weight, act="silu")

    assert_agrees(cropped, {"x": t["x"], "weight": t["weight"]}, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(path, dtype):
    for weight_dtype in (dtype, torch.float32):
        for act, residual in MODES:
            (y,) = assert_agrees(conv(act, residual), arguments((2, 19, 5, 4), dtype, weight_dtype), path)
            assert y.dtype == dtype


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(path, dtype):
    for x_dtype in (dtype, torch.float32):
        t = arguments((1, 8, 5, 5), x_dtype, torch.float32)
        with use(path):
            expected = depthwise_conv3x3(**t, act="silu", residual=True)
            with torch.autocast("cpu", dtype):
                got = depthwise_conv3x3(**t, act="silu", residual=True)
        assert got.dtype == x_dtype and torch.equal(got, expected)


@pytest.mark.parametrize("path", PATHS)
def test_empty_batch(path):
    with use(path):
        assert depthwise_conv3x3(torch.empty(0, 4, 3, 3), torch.ones(4, 1, 3, 3)).shape == (0, 4, 3, 3)


def test_scripted_and_compiled_calls_are_the_eager_one():
    x, weight, bias = arguments((1, 4, 5, 6)).values()
    eager = depthwise_conv3x3(x, weight, bias, "silu", True)
    assert torch.equal(torch.jit.script(depthwise_conv3x3)(x, weight, bias, "silu", True), eager)
    compiled = torch.compile(depthwise_conv3x3, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, bias, "silu", True), eager)


@pytest.mark.parametrize("path", CORE)
def test_result_does_not_depend_on_the_number_of_threads(path):
    tensors = arguments((3, 48, 45, 45))
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


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    x, weight, bias = (t.requires_grad_() for t in arguments((2, 4, 5, 6)).values())
    with FlopCounterMode(display=False) as counter:
        y = depthwise_conv3x3(x, weight, bias, "silu")
        assert counter.get_total_flops() == 2 * 9 * x.numel()
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 9 * x.numel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4, 5, 6)}, r"x must be \(B, C, H, W\), got \(4, 5, 6\)"),
        ({"x": torch.ones(1, 6, 5, 4)}, r"weight must be \(6, 1, 3, 3\) for x \(1, 6, 5, 4\), got \(4, 1, 3, 3\)"),
        ({"weight": torch.ones(4, 1, 5, 5)}, r"weight must be \(4, 1, 3, 3\)"),
        ({"bias": torch.ones(3)}, r"bias must be \(4,\)"),
        ({"act": "gelu"}, "unknown act 'gelu': choose one of none, silu"),
        ({"x": torch.ones(1, 4, 5, 6, dtype=torch.uint8)}, "x has dtype torch.uint8; supported: float32"),
        ({"x": torch.ones(1, 4, 5, 0)}, r"x is empty: \(1, 4, 5, 0\)"),
        ({"weight": torch.ones(4, 1, 3, 3, device="meta")}, "weight is on meta but x is on cpu"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv3x3(**({"x": torch.ones(1, 4, 5, 6), "weight": torch.ones(4, 1, 3, 3)} | change))


@needs_core
def test_the_core_refuses_a_map_without_pixels():
    """A scripted model calls the operator without the checks of the public function."""
    with pytest.raises(RuntimeError, match="outside what the kernel supports"):
        torch.ops.vssm.depthwise_conv3x3(torch.ones(1, 4, 0, 6), torch.ones(4, 1, 3, 3), None, "none", False, "core")
