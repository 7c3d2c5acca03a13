"""layer_norm: torch's own numbers, every path against the reference, dtypes under autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.ops.agree import CORE, PATHS, assert_agrees, evaluate, every_isa, randn
from vssm.ops import layer_norm, native, use
from vssm.ops.operator import OPERATORS

# Odd widths, less and more than a vector, more than one register block; more rows than one task takes.
SHAPES = [(2, 3, 96), (1, 7), (3, 33), (2, 2, 5, 192), (7, 771), (600, 16)]
HALVES = [torch.bfloat16, torch.float16]


def arguments(shape, dtype=torch.float32, gate=False, affine=True, weight_dtype=None):
    width = shape[-1]
    weight_dtype = weight_dtype or dtype
    tensors = {"x": randn(*shape, dtype=dtype) * 3 + 1}
    if affine:
        tensors["weight"] = 1 + 0.1 * randn(width, dtype=weight_dtype, seed=1)
        tensors["bias"] = 0.1 * randn(width, dtype=weight_dtype, seed=2)
    if gate:
        tensors["gate"] = randn(*shape, dtype=dtype, seed=3)
    return tensors


@pytest.mark.parametrize("gate", [False, True])
def test_reference_is_torch(gate):
    tensors = arguments((4, 9), torch.float64, gate)
    expected = F.layer_norm(tensors["x"], (9,), tensors["weight"], tensors["bias"], 1e-5)
    if gate:
        expected = expected * F.silu(tensors["gate"])
    with use("reference"):
        assert torch.allclose(layer_norm(**tensors), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gate", [False, True])
def test_paths_agree_with_the_reference(path, dtype, gate):
    for shape in SHAPES:
        (y,) = assert_agrees(layer_norm, arguments(shape, dtype, gate), path)
        assert y.dtype == dtype and y.is_contiguous()


@pytest.mark.parametrize("isa", every_isa())
def test_every_instruction_set(isa):
    with native.use_isa(isa):
        for shape in SHAPES:
            assert_agrees(layer_norm, arguments(shape, gate=True), "core")
        for dtype in HALVES:
            assert_agrees(layer_norm, arguments((6, 50), dtype, gate=True), "core")


@pytest.mark.parametrize("path", PATHS)
def test_absent_weight_or_bias(path):
    full = arguments((3, 4, 20), torch.float64, gate=True)
    for absent in (["weight"], ["bias"], ["weight", "bias", "gate"]):
        assert_agrees(layer_norm, {k: None if k in absent else t for k, t in full.items()}, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(path, dtype):
    (y,) = assert_agrees(layer_norm, arguments((6, 50), dtype, gate=True), path)
    assert y.dtype == dtype
    (y,) = assert_agrees(layer_norm, arguments((6, 50), dtype, weight_dtype=torch.float32), path)
    assert y.dtype == torch.float32


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_keeps_the_stream_in_float32(path, dtype):
    linear, half = torch.nn.Linear(24, 24), torch.randn(5, 24).to(dtype)
    weight, bias, stream = torch.ones(24), torch.zeros(24), torch.randn(5, 24)
    with torch.autocast("cpu", dtype), use(path):
        branch = linear(half)
        normed = layer_norm(branch, weight, bias)
        bare = layer_norm(branch)
        gated = layer_norm(stream, weight, bias, gate=branch)
    assert branch.dtype == dtype
    assert [t.dtype for t in (normed, bare, gated)] == [torch.float32] * 3
    expected = F.layer_norm(branch.double(), (24,))
    assert torch.allclose(normed.double(), expected, atol=2e-6) and torch.allclose(bare.double(), expected, atol=2e-6)


@pytest.mark.parametrize("path", PATHS)
def test_statistics_survive_a_large_mean(path):
    x = randn(4, 256, dtype=torch.float32) + 4096
    with use(path):
        y = layer_norm(x)
    assert torch.allclose(y.double(), F.layer_norm(x.double(), (256,)), atol=1e-3)


@pytest.mark.parametrize("path", PATHS)
def test_strided_input(path):
    x = randn(3, 12, 4, 5)
    weight, bias = randn(12, seed=1), randn(12, seed=2)

    def through_channels_last(x, weight, bias):
        return layer_norm(x.permute(0, 2, 3, 1), weight, bias, gate=x.permute(0, 2, 3, 1) * 2)

    assert_agrees(through_channels_last, {"x": x, "weight": weight, "bias": bias}, path)


@pytest.mark.parametrize("path", PATHS)
def test_one_channel_and_no_rows(path):
    bias = torch.tensor([0.5])
    with use(path):
        assert torch.allclose(layer_norm(randn(5, 1), torch.ones(1), bias), bias, atol=1e-4)
        assert layer_norm(torch.empty(0, 8), torch.ones(8)).shape == (0, 8)


# ---- what the Triton kernel saves (docs/ops.md) ----


class Traffic(TorchDispatchMode):
    """Counts the bytes of every tensor that an operator of torch reads or writes; views are free."""

    moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.moved += sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
        return out


def bytes_per_number(x_dtype, gate_dtype=None):
    """Of the torch path's forward, and of its backward."""
    x, weight = torch.zeros(4096, 64, dtype=x_dtype).requires_grad_(), torch.zeros(64).requires_grad_()
    gate = None if gate_dtype is None else torch.zeros(4096, 64, dtype=gate_dtype)
    operator = OPERATORS["layer_norm"]
    with Traffic() as forward:
        y = operator.evaluate(operator.composition, (x, weight, weight, gate, 1e-5))
    with Traffic() as backward:
        torch.autograd.grad(y, x, torch.empty_like(y))
    return forward.moved // x.numel(), backward.moved // x.numel()


def test_bytes_that_torch_moves():
    assert bytes_per_number(torch.float32) == (8, 20)
    assert bytes_per_number(torch.bfloat16)[0] == 14
    assert bytes_per_number(torch.float32, torch.bfloat16)[0] == 34


# ---- as operators ----


def test_scripted_and_compiled_calls_are_the_eager_one():
    tensors = arguments((4, 30), gate=True)
    x, weight, bias, gate = tensors["x"], tensors["weight"], tensors["bias"], tensors["gate"]
    eager = layer_norm(x, weight, bias, 1e-5, gate)
    assert torch.allclose(layer_norm(x, weight, bias), F.layer_norm(x, (30,), weight, bias), atol=1e-6)
    assert torch.equal(torch.jit.script(layer_norm)(x, weight, bias, 1e-5, gate), eager)
    compiled = torch.compile(layer_norm, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, weight, bias, 1e-5, gate), eager, atol=1e-6)


@pytest.mark.parametrize("path", CORE)
def test_result_does_not_depend_on_the_number_of_threads(path):
    tensors = arguments((2, 613, 48), gate=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = evaluate(layer_norm, tensors, path)
        torch.set_num_threads(2)
        two = evaluate(layer_norm, tensors, path)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0][0], two[0][0])
    assert all(torch.equal(one[1][k], two[1][k]) for k in one[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(5)}, r"weight must be \(6,\).*got \(5,\)"),
        ({"bias": torch.ones(2, 6)}, r"bias must be \(6,\).*got \(2, 6\)"),
        ({"gate": torch.ones(6)}, r"gate must have the shape of x, \(4, 6\), got \(6,\)"),
        ({"x": torch.ones(4, 6, dtype=torch.int32)}, "x has dtype torch.int32; supported: float32"),
        ({"x": torch.tensor(1.0)}, r"x must be \(\.\.\., C\)"),
        ({"weight": torch.ones(6, device="meta")}, "weight is on meta but x is on cpu"),
        ({"gate": torch.ones(4, 6, device="meta")}, "gate is on meta but x is on cpu"),
        ({"bias": torch.ones(6).long()}, "bias has dtype torch.int64; supported: float32"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        layer_norm(**({"x": torch.ones(4, 6)} | change))
