"""rms_norm: torch's own numbers, every path against the reference."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.agree import PATHS, assert_agrees, every_isa, randn
from vssm.ops import native, rms_norm, use

SHAPES = [(2, 3, 96), (1, 7), (3, 33), (7, 771), (600, 16)]


def arguments(shape, dtype=torch.float32, weight_dtype=None):
    return {
        "x": randn(*shape, dtype=dtype) * 3 + 1,
        "weight": 1 + 0.1 * randn(shape[-1], dtype=weight_dtype or dtype, seed=1),
    }


def test_reference_is_torch():
    t = arguments((4, 9), torch.float64)
    with use("reference"):
        assert torch.allclose(rms_norm(**t), F.rms_norm(t["x"], (9,), t["weight"], 1e-5), rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_paths_agree_with_the_reference(path, dtype):
    for shape in SHAPES:
        (y,) = assert_agrees(rms_norm, arguments(shape, dtype), path)
        assert y.dtype == dtype and y.is_contiguous()
    assert_agrees(rms_norm, {"x": randn(3, 20, dtype=dtype)[:, ::2]}, path)


@pytest.mark.parametrize("isa", every_isa())
def test_every_instruction_set(isa):
    with native.use_isa(isa):
        for shape in SHAPES:
            assert_agrees(rms_norm, arguments(shape), "core")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(path, dtype):
    (y,) = assert_agrees(rms_norm, arguments((6, 50), dtype), path)
    assert y.dtype == dtype
    (y,) = assert_agrees(rms_norm, arguments((6, 50), dtype, torch.float32), path)
    assert y.dtype == torch.float32


def test_scripted_and_compiled_calls_are_the_eager_one():
    x, weight = arguments((3, 8)).values()
    eager = rms_norm(x, weight)
    assert torch.equal(torch.jit.script(rms_norm)(x, weight), eager)
    compiled = torch.compile(rms_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), eager)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.tensor(1.0)}, r"x must be \(..., C\) with C of at least 1, got \(\)"),
        ({"weight": torch.ones(3)}, r"weight must be \(4,\)"),
        ({"x": torch.ones(2, 4, dtype=torch.int32)}, "x has dtype torch.int32; supported: float32"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(**({"x": torch.ones(2, 4), "weight": torch.ones(4)} | change))
