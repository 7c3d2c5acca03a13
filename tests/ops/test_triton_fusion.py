"""State fusion on Triton, interpreted: outputs and every gradient against the reference. Run by test_triton.py."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from tests.ops import interpreter  # noqa: F401  (makes it fit)
from tests.ops.agree import assert_agrees, evaluate
from tests.ops.pairs import pairwise
from tests.ops.test_state_fusion import arguments, fusion, readout, readout_arguments

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAPS = {"1x1": (1, 1), "3x2": (3, 2), "1x9": (1, 9), "7x5": (7, 5)}
DILATIONS = {"1": [1], "135": [1, 3, 5], "24": [2, 4], "far": [40]}


@pytest.mark.parametrize("dtype, dilations, shape", pairwise(list(DTYPES), list(DILATIONS), list(MAPS)))
def test_fusion(dtype, dilations, shape):
    dilations, dtype = DILATIONS[dilations], DTYPES[dtype]
    tensors = arguments((2, 5, *MAPS[shape]), dtype, dilations, weight_dtype=torch.float32)
    # The interpreter cuts float32 down to bfloat16 where a GPU rounds.
    tolerance = 8e-3 if dtype == torch.bfloat16 else None
    loose = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: None}[dtype]
    (y,) = assert_agrees(fusion(dilations), tensors, "triton", tolerance, loose)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 67, 2, 3), (1, 3, 1, 1)])
def test_readout(shape):
    tensors = readout_arguments(shape)
    (y,) = assert_agrees(readout, tensors, "triton", grad_tolerance=2e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    half = tensors | {name: tensors[name].bfloat16() for name in ("h", "u", "C")}
    assert_agrees(readout, half, "triton", grad_tolerance=1e-2)
    del tensors["u"], tensors["D"]
    assert_agrees(readout, tensors, "triton", grad_tolerance=2e-5)


def test_the_same_bits_twice():
    tensors = arguments((2, 6, 5, 4))
    (first, grads), (again, again_grads) = (evaluate(fusion(), tensors, "triton") for _ in range(2))
    assert torch.equal(first[0], again[0]) and all(torch.equal(g, again_grads[k]) for k, g in grads.items())
