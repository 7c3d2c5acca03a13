"""Blending of states on Triton, interpreted, against the reference in float64. Run by test_triton.py."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from tests.ops import interpreter  # noqa: F401  (makes it fit)
from tests.ops.agree import assert_agrees, evaluate
from tests.ops.test_state_gather import SHAPES, arguments
from vssm.ops import dispatch, explain, state_gather, use


@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 5, 1, 7, 7, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_gather(shape, dtype):
    tensors = arguments(shape) | {"h": arguments(shape)["h"].to(dtype)}
    (y,) = assert_agrees(state_gather, tensors, "triton", 1e-6, 4e-6 if dtype == torch.float32 else 8e-3)
    assert y.dtype == torch.float32 and y.permute(0, 1, 3, 4, 5, 2).is_contiguous()


def test_places_that_meet_add_to_the_same_bits_in_any_order():
    """All pixels look at one: the gradient of its state is a sum over the map, whatever the order of the pixels."""
    tensors = arguments((1, 1, 3, 1, 5, 5, 2))
    here = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij"))
    tensors["offsets"] = (torch.tensor([2.25, 1.5])[:, None, None] - here).expand(1, 1, 2, 2, 5, 5)
    assert_agrees(state_gather, tensors, "triton", 1e-6, 4e-6)
    other = tensors | {"weights": tensors["weights"].flip(-1, -2)}
    cotangent = torch.randn(1, 1, 3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    (_, there), (_, back) = (
        evaluate(state_gather, t, "triton", [c]) for t, c in ((tensors, cotangent), (other, cotangent.flip(-1, -2)))
    )
    assert torch.equal(there["h"], back["h"]) and there["h"].count_nonzero() == 12


def test_sizes_of_gradients_far_apart_and_no_numbers():
    tensors = arguments((1, 1, 4, 1, 3, 3, 2))
    for size in (1e-30, 1e30):
        (_, plain), (_, scaled) = (
            evaluate(state_gather, tensors, "triton", [torch.full((1, 1, 4, 1, 3, 3), s)]) for s in (1.0, size)
        )
        torch.testing.assert_close(scaled["h"] / size, plain["h"], rtol=1e-5, atol=1e-6)
    (_, none) = evaluate(state_gather, tensors, "triton", [torch.zeros(1, 1, 4, 1, 3, 3)])
    assert all((grad == 0).all() for grad in none.values())
    (_, broken) = evaluate(state_gather, tensors, "triton", [torch.full((1, 1, 4, 1, 3, 3), torch.inf)])
    assert not broken["h"].isfinite().any()  # as a scaler of losses has to see


def test_places_far_away_add_nothing_and_an_empty_batch():
    t = arguments((1, 1, 4, 1, 3, 3, 2))
    t["offsets"][:, :, 0] = 1e30
    with use("triton"):
        assert explain("state_gather").choices[0].path == "triton"
        alone = state_gather(t["h"], t["offsets"][:, :, 1:], t["weights"][:, :, 1:])
        torch.testing.assert_close(state_gather(**t), alone)
        empty = {k: v[:0].clone().requires_grad_() for k, v in t.items()}
        state_gather(**empty).sum().backward()
        assert empty["h"].grad.shape == empty["h"].shape
        with pytest.raises(dispatch.PathUnavailable, match="the tensor is float64"):
            state_gather(t["h"], t["offsets"].double(), t["weights"])
