"""The depthwise convolution on Triton, interpreted, against the reference in float64. Run by test_triton.py."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from tests.ops import interpreter  # noqa: F401  (makes it fit)
from tests.ops.agree import assert_agrees, evaluate, randn
from tests.ops.pairs import pairwise
from tests.ops.test_depthwise import arguments, conv
from vssm.ops import depthwise_conv3x3, dispatch, explain, use

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# One pixel, one row, one column, odd sizes beyond a tile of 32 pixels, channels beyond a tile of 64.
SHAPES = {"1x1": (2, 3, 1, 1), "1x9": (1, 5, 1, 9), "6x1": (2, 5, 6, 1), "5x7": (2, 5, 5, 7), "wide": (1, 67, 2, 3)}


@pytest.mark.parametrize(
    "dtype, shape, act, residual", pairwise(list(DTYPES), list(SHAPES), ["none", "silu"], [False, True])
)
def test_depthwise(dtype, shape, act, residual):
    dtype = DTYPES[dtype]
    tensors = arguments(SHAPES[shape], dtype, torch.float32)
    # The interpreter cuts float32 down to bfloat16 where a GPU rounds.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    loose = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}[dtype]
    (y,) = assert_agrees(conv(act, residual), tensors, "triton", tolerance, loose)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


def test_no_bias_any_strides_and_the_same_bits_twice():
    x = randn(2, 3, 8, 9)[..., ::2]
    tensors = {"x": x, "weight": randn(3, 1, 3, 3, seed=1)}
    assert_agrees(depthwise_conv3x3, tensors, "triton", 1e-6)
    (first, grads), (again, again_grads) = (evaluate(depthwise_conv3x3, tensors, "triton") for _ in range(2))
    assert torch.equal(first[0], again[0]) and all(torch.equal(g, again_grads[k]) for k, g in grads.items())


def test_an_empty_batch_and_a_wider_weight():
    tensors = {k: t.requires_grad_() for k, t in arguments((0, 3, 4, 4)).items()}
    with use("triton"):
        assert explain("depthwise_conv3x3").choices[0].path == "triton"
        y = depthwise_conv3x3(**tensors)
        y.sum().backward()
        assert y.shape == (0, 3, 4, 4) and all((tensors[name].grad == 0).all() for name in ("weight", "bias"))
        with pytest.raises(dispatch.PathUnavailable, match="the tensor is float64"):
            depthwise_conv3x3(tensors["x"], tensors["weight"].double())
