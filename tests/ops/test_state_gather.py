"""state_gather: torch's sampling, plain averages, every path against the reference, gradients by finite differences."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.agree import CORE, PATHS, assert_agrees, evaluate, every_isa, randn
from vssm.ops import native, state_gather, use

# (batch, sequences, channels, states, height, width, places): odd sizes, one pixel, more channels than one task takes.
SHAPES = [(2, 4, 5, 1, 4, 6, 4), (1, 1, 3, 2, 1, 1, 2), (1, 2, 70, 1, 3, 2, 1), (1, 1, 17, 3, 5, 1, 3)]


def arguments(shape, dtype=torch.float32):
    batch, sequences, channels, states, height, width, places = shape
    # Off the pixels by at least 0.05: at a pixel the gradient jumps, and rounding decides on which side.
    offsets = 2 * randn(batch, sequences, places, 2, height, width, seed=1)
    fraction = offsets - offsets.floor()
    offsets = offsets.floor() + fraction.clamp(0.05, 0.95)
    return {
        "h": randn(batch, sequences, states, height, width, channels, dtype=dtype).permute(0, 1, 5, 2, 3, 4),
        "offsets": offsets.to(dtype),
        "weights": randn(batch, sequences, places, height, width, dtype=dtype, seed=2),
    }


def test_reference_is_torch_sampling():
    t = arguments((2, 3, 5, 2, 6, 7, 4), torch.float64)
    rows = torch.arange(6)[:, None] + t["offsets"][:, :, :, 0]
    columns = torch.arange(7) + t["offsets"][:, :, :, 1]
    expected = torch.zeros_like(t["h"])
    for sequence in range(3):
        for k in range(4):
            place = columns[:, sequence, k] / 3 - 1, rows[:, sequence, k] / 2.5 - 1
            maps = t["h"][:, sequence].flatten(1, 2)
            sample = F.grid_sample(maps, torch.stack(place, -1), align_corners=True).view(2, 5, 2, 6, 7)
            expected[:, sequence] += t["weights"][:, sequence, k, None, None] * sample
    with use("reference"):
        torch.testing.assert_close(state_gather(**t), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_whole_offsets_and_equal_weights_are_an_average(path):
    h = randn(1, 2, 5, 1, 6, 6, dtype=torch.float64)
    steps = torch.tensor([[0, 0], [0, 1], [-1, 0], [2, -2]])
    offsets = steps.double().view(1, 1, 4, 2, 1, 1).expand(1, 2, 4, 2, 6, 6)
    padded = F.pad(h, (2, 2, 2, 2))
    expected = sum(padded[..., 2 + dy : 8 + dy, 2 + dx : 8 + dx] for dy, dx in steps.tolist()) / 4
    with use(path):
        y = state_gather(h, offsets, torch.full((1, 2, 4, 6, 6), 0.25, dtype=torch.float64))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
def test_constant_maps_stay_away_from_the_border(path):
    h = torch.full((1, 1, 3, 1, 9, 9), 2.0, dtype=torch.float64)
    offsets = randn(1, 1, 4, 2, 9, 9, dtype=torch.float64).clamp(-2, 2)
    weights = randn(1, 1, 4, 9, 9, dtype=torch.float64).softmax(2)
    with use(path):
        torch.testing.assert_close(state_gather(h, offsets, weights)[..., 2:7, 2:7], h[..., 2:7, 2:7])


@pytest.mark.parametrize("path", CORE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_on_pixels(path, dtype):
    """Gradients are those of the cell below and to the right, also one pixel before the map, where the point has no
    weight and its gradient one."""
    t = arguments((2, 2, 3, 2, 4, 5, 4), dtype)
    t["offsets"] = t["offsets"].round()
    rows = torch.arange(4, dtype=dtype)[:, None] + t["offsets"][:, :, :, 0]
    assert (rows == -1).any() and (rows == 3).any() and (rows < -1).any()
    assert_agrees(state_gather, t, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_paths_agree_with_the_reference(path, dtype):
    for shape in SHAPES:
        # In float32 torch's path rounds places in the units of the whole map.
        tolerance = (None, None) if dtype == torch.float64 or path == "core" else (4e-6, 4e-5)
        (y,) = assert_agrees(state_gather, arguments(shape, dtype), path, *tolerance)
        assert y.dtype == dtype and y.permute(0, 1, 3, 4, 5, 2).is_contiguous()


@pytest.mark.parametrize("isa", every_isa())
def test_every_instruction_set(isa):
    with native.use_isa(isa):
        for shape in SHAPES:
            assert_agrees(state_gather, arguments(shape), "core")


@pytest.mark.parametrize("path", PATHS)
def test_places_far_away_or_unknown_add_nothing_else(path):
    t = arguments((1, 1, 4, 1, 3, 3, 2), torch.float64)
    t["offsets"][:, :, 0] = 1e30
    with use(path):
        y = state_gather(**t)
        alone = state_gather(t["h"], t["offsets"][:, :, 1:], t["weights"][:, :, 1:])
    torch.testing.assert_close(y, alone)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_by_finite_differences(path):
    tensors = [t.requires_grad_() for t in arguments((1, 2, 3, 2, 3, 4, 2), torch.float64).values()]
    with use(path):
        assert torch.autograd.gradcheck(state_gather, tensors)


@pytest.mark.parametrize("path", PATHS)
def test_half_precision_computes_in_float32(path):
    t = arguments((1, 2, 5, 1, 4, 4, 2), torch.bfloat16)
    with use(path):
        assert state_gather(**t).dtype == torch.float32
        torch.testing.assert_close(state_gather(**t), state_gather(**{k: v.float() for k, v in t.items()}))


@pytest.mark.parametrize("path", CORE)
def test_result_does_not_depend_on_the_number_of_threads(path):
    tensors = arguments((2, 2, 130, 1, 9, 8, 4))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = evaluate(state_gather, tensors, path)
        torch.set_num_threads(2)
        two = evaluate(state_gather, tensors, path)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0][0], two[0][0])
    assert all(torch.equal(one[1][k], two[1][k]) for k in one[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.ones(1, 2, 3, 4, 4)}, r"h must be \(B, S, C, N, H, W\)"),
        ({"weights": torch.ones(1, 2, 4, 4)}, r"weights must be \(B, S, K, H, W\) = \(1, 2, K, 4, 4\)"),
        ({"offsets": torch.ones(1, 2, 3, 2, 4, 5)}, r"offsets must be .* = \(1, 2, 3, 2, 4, 4\), got"),
        ({"h": torch.ones(1, 2, 3, 1, 4, 4, dtype=torch.int32)}, "h has dtype torch.int32"),
    ],
)
def test_errors(change, message):
    good = {
        "h": torch.ones(1, 2, 3, 1, 4, 4),
        "offsets": torch.ones(1, 2, 3, 2, 4, 4),
        "weights": torch.ones(1, 2, 3, 4, 4),
    }
    with pytest.raises(ValueError, match=message):
        state_gather(**(good | change))
