"""The causal convolution on Triton, interpreted, against the reference in float64. Run by test_triton.py."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from tests.ops import interpreter  # noqa: F401  (makes it fit)
from tests.ops.agree import assert_agrees, evaluate, randn
from tests.ops.pairs import pairwise
from tests.ops.test_causal_conv1d import arguments, conv
from vssm.ops import causal_conv1d, dispatch, explain, use

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# (batch, channels, length, width): one step, fewer steps than taps, sequences that end within a tile of 32, channels
# beyond a tile of 64, widths that the core does not have.
SHAPES = {
    "one": (2, 3, 1, 4),
    "short": (1, 16, 2, 3),
    "49": (2, 5, 49, 4),
    "wide": (1, 67, 9, 2),
    "taps": (1, 5, 33, 7),
}


@pytest.mark.parametrize(
    "dtype, shape, act, reverse", pairwise(list(DTYPES), list(SHAPES), ["none", "silu"], [False, True])
)
def test_causal_conv1d(dtype, shape, act, reverse):
    dtype = DTYPES[dtype]
    tensors = arguments(SHAPES[shape], dtype, torch.float32)
    # The interpreter cuts float32 down to bfloat16 where a GPU rounds.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    loose = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}[dtype]
    (y,) = assert_agrees(conv(act, reverse), tensors, "triton", tolerance, loose)
    assert y.dtype == dtype and y.mT.is_contiguous()


def test_no_bias_any_strides_and_the_same_bits_twice():
    tensors = {"x": randn(2, 3, 18)[..., ::2], "weight": randn(3, 4, seed=1)}
    assert_agrees(causal_conv1d, tensors, "triton", 1e-6)
    (first, grads), (again, again_grads) = (evaluate(causal_conv1d, tensors, "triton") for _ in range(2))
    assert torch.equal(first[0], again[0]) and all(torch.equal(g, again_grads[k]) for k, g in grads.items())


def test_an_empty_batch_and_a_wider_weight():
    tensors = {k: t.requires_grad_() for k, t in arguments((0, 3, 4, 4)).items()}
    with use("triton"):
        assert explain("causal_conv1d").choices[0].path == "triton"
        y = causal_conv1d(**tensors)
        y.sum().backward()
        assert y.shape == (0, 3, 4) and all((tensors[name].grad == 0).all() for name in ("weight", "bias"))
        with pytest.raises(dispatch.PathUnavailable, match="the tensor is float64"):
            causal_conv1d(tensors["x"], tensors["weight"].double())
