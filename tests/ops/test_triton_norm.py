"""Layer norm and root mean square norm on Triton, interpreted, against float64. Run by test_triton.py."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from tests.ops import interpreter  # noqa: F401  (makes it fit)
from tests.ops.agree import assert_agrees, evaluate, randn
from tests.ops.pairs import pairwise
from tests.ops.test_layer_norm import arguments
from vssm.nn import RMSNorm
from vssm.ops import explain, layer_norm, rms_norm, use
from vssm.ops.layer_norm import triton

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# One number, a row shorter than its tile, more rows than a tile of 1024 holds, a row of several tiles.
SHAPES = {"one": (1, 1), "short": (3, 33), "rows": (2, 2, 5, 96), "wide": (3, 1030)}
# The interpreter cuts float32 down to bfloat16 where a GPU rounds.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
LOOSE = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def two_programs(monkeypatch):
    """Share the sums of a backward, so that each goes through several tiles."""
    monkeypatch.setattr(triton, "SHARES", 2)


@pytest.mark.parametrize(
    "dtype, shape, gate, weights", pairwise(list(DTYPES), list(SHAPES), [False, True], ["none", "float32", "like x"])
)
def test_layer_norm(dtype, shape, gate, weights):
    dtype = DTYPES[dtype]
    wide = torch.float32 if weights == "float32" else dtype
    tensors = arguments(SHAPES[shape], dtype, gate, weights != "none", wide)
    (y,) = assert_agrees(layer_norm, tensors, "triton", TOLERANCE[dtype], LOOSE[dtype])
    assert y.dtype == (dtype if weights == "none" else wide) and y.is_contiguous()
    rms = {name: tensors[name] for name in ("x", "weight") if name in tensors}
    (y,) = assert_agrees(rms_norm, rms, "triton", TOLERANCE[dtype], LOOSE[dtype])
    assert y.dtype == (dtype if weights == "none" else wide)


def test_strides_a_large_mean_and_the_same_bits_twice():
    x = randn(2, 6, 5, 4)
    tensors = {"x": x, "weight": randn(6, seed=1), "bias": None}

    def on_maps(x, weight, bias):
        return layer_norm(x.permute(0, 2, 3, 1), weight, bias, gate=x.permute(0, 2, 3, 1) * 2)

    assert_agrees(on_maps, tensors, "triton", 1e-6)
    (first, grads), (again, again_grads) = (evaluate(on_maps, tensors, "triton") for _ in range(2))
    assert torch.equal(first[0], again[0]) and all(torch.equal(g, again_grads[k]) for k, g in grads.items())
    with use("triton"):
        expected = torch.nn.functional.layer_norm(x.double() + 4096, (4,))
        assert torch.allclose(layer_norm(x + 4096).double(), expected, atol=2e-3)
        assert layer_norm(torch.empty(0, 8)).shape == (0, 8)
        assert [explain(op).choices[0].path for op in ("layer_norm", "rms_norm")] == ["triton"] * 2


def test_autocast_gives_the_dtypes_of_the_other_paths():
    half, stream = randn(5, 24).bfloat16(), randn(5, 24)
    weight, norm = torch.ones(24), RMSNorm(24)

    def results():
        with torch.autocast("cpu", torch.bfloat16):
            return (
                layer_norm(half, weight),
                layer_norm(half),
                layer_norm(stream, weight, gate=half),
                rms_norm(half, weight),
                rms_norm(half),
                norm(half),
            )

    with use("torch"):
        expected = results()
    with use("triton"):
        found = results()
    for y, e in zip(found, expected, strict=True):
        assert y.dtype == e.dtype
        torch.testing.assert_close(y, e)


def test_rows_too_long_are_named_by_forward_and_backward():
    with use("triton"):
        for norm in (layer_norm, rms_norm):
            with pytest.raises(ValueError, match=r"rows of 8193 channels are too long for the Triton norms.* 8192;"):
                norm(torch.zeros(1, 8193))


class _Norms(torch.nn.Module):
    def forward(self, x, weight, bias, gate):
        return rms_norm(x + layer_norm(x, weight, bias, gate=gate), weight)


def test_one_graph_of_any_size_and_an_exported_one():
    norms, sizes = _Norms(), {0: torch.export.Dim("rows", min=2, max=64)}
    with use("triton"):
        compiled = torch.compile(norms, fullgraph=True, dynamic=True, backend="aot_eager")
        given = tuple(arguments((3, 10), gate=True).values())
        shapes = {"x": sizes, "weight": None, "bias": None, "gate": sizes}
        exported = torch.export.export(norms, given, dynamic_shapes=shapes)
        for op in ("layer_norm", "rms_norm"):
            assert f"vssm.{op}." in exported.graph_module.code
        for shape in ((3, 10), (20, 10)):
            given = tuple(arguments(shape, gate=True).values())
            assert torch.equal(compiled(*given), norms(*given))
            assert torch.equal(exported.module()(*given), norms(*given))
