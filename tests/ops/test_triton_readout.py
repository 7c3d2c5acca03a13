"""The readout of states on Triton, interpreted, against the reference in float64. Run by test_triton.py."""

import os

import pytest
import torch
from torch.library import opcheck

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from tests.ops import interpreter  # noqa: F401  (makes it fit)
from tests.ops.agree import assert_agrees, evaluate, randn
from vssm.ops import explain, gpu, ss2d_readout, use

# (B, K, E, N, H, W): one number; samples that share a tile of 32 pixels; channels beyond a tile of 64; many states.
SHAPES = [(1, 1, 3, 1, 1, 1), (2, 4, 20, 1, 5, 7), (1, 2, 67, 3, 4, 2), (2, 1, 5, 16, 3, 9)]


def arguments(shape, dtype=torch.float32, C_dtype=torch.float32):
    B, K, E, N, H, W = shape
    h = randn(B, K, N, H, W, E).to(dtype).permute(0, 1, 5, 2, 3, 4)
    tensors = {"h": h, "C": randn(B, K, N, H, W, seed=1).to(C_dtype), "x": randn(B, E, H, W, seed=2).to(C_dtype)}
    return tensors | {"D": randn(K * E, seed=3)}


@pytest.fixture(autouse=True)
def two_programs(monkeypatch):
    """Share the sums of a backward, so that each goes through several tiles."""
    monkeypatch.setattr(gpu, "SHARES", 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_readout(shape):
    tensors = arguments(shape)
    (y,) = assert_agrees(ss2d_readout, tensors, "triton", 1e-6, 4e-6)
    assert y.dtype == torch.float32 and y.permute(0, 2, 3, 1).is_contiguous()
    assert_agrees(ss2d_readout, arguments(shape, C_dtype=torch.bfloat16), "triton", 1e-6, 8e-3)  # under autocast
    assert_agrees(ss2d_readout, arguments(shape, torch.float16, torch.float16), "triton", 1e-3, 4e-3)
    assert_agrees(lambda h, C: ss2d_readout(h, C, h[:, 0, :, 0]), {k: tensors[k] for k in ("h", "C")}, "triton", 1e-6)


def test_any_memory_and_the_same_bits_twice():
    tensors = arguments(SHAPES[1])
    (first, grads), (again, again_grads) = (evaluate(ss2d_readout, tensors, "triton") for _ in range(2))
    assert torch.equal(first[0], again[0]) and all(torch.equal(g, again_grads[k]) for k, g in grads.items())
    other = tensors | {"h": tensors["h"].contiguous(), "C": tensors["C"].mT.contiguous().mT}
    with use("triton"):
        assert torch.equal(ss2d_readout(**other), first[0])
        assert explain("ss2d_readout").choices[0].path == "triton"


def test_one_graph_of_any_size_and_an_exported_one():
    t = arguments((1, 2, 3, 1, 2, 2))
    size = {2: torch.export.Dim("height", min=2, max=8)}
    sizes = {"h": {4: size[2]}, "C": {3: size[2]}, "x": size, "D": None}
    with use("triton"):
        compiled = torch.compile(ss2d_readout, fullgraph=True, dynamic=True, backend="aot_eager")
        exported = torch.export.export(_Readout(), tuple(t.values()), dynamic_shapes=sizes)
        assert "vssm.ss2d_readout" in exported.graph_module.code
        for shape in ((1, 2, 3, 1, 2, 2), (1, 2, 3, 1, 5, 2)):
            given = arguments(shape).values()
            expected = ss2d_readout(*given)
            assert torch.equal(compiled(*given), expected)
            assert torch.equal(exported.module()(*given), expected)


class _Readout(torch.nn.Module):
    def forward(self, h, C, x, D):
        return ss2d_readout(h, C, x, D)


def test_empty_batch_and_opcheck():
    tensors = {k: t.requires_grad_() for k, t in arguments((0, 2, 3, 1, 2, 2)).items()}
    with use("triton"):
        ss2d_readout(**tensors).sum().backward()
    assert (tensors["D"].grad == 0).all()
    h, C, x, D = (t.requires_grad_() for t in arguments((2, 1, 5, 2, 2, 3), C_dtype=torch.bfloat16).values())
    opcheck(torch.ops.vssm.ss2d_readout, (h, C, x, D, "triton"))
    opcheck(torch.ops.vssm.ss2d_readout, (h, C, None, None, "triton"))
