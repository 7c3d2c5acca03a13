"""The blockwise MLP against its plain composition."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.agree import needs_core, outputs_and_gradients
from vssm.ops import mlp, use
from vssm.ops.mlp import core


def arguments(rows=(3, 50, 7), dim=12, hidden=48, out=12, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = ((*rows, dim), (hidden, dim), (hidden,), (out, hidden), (out,), (*rows, out))
    return [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@needs_core
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_core_agrees_with_the_composition(monkeypatch, recompute, dtype, tolerance):
    monkeypatch.setattr(core, "RECOMPUTE_BYTES", 0 if recompute else 1 << 40)
    monkeypatch.setattr(core, "MIN_ROWS", 64)
    monkeypatch.setattr(core, "CHUNK_ELEMENTS", 64 * 48)
    assert len(core.chunks(3 * 50 * 7, 48)) > 10
    args = arguments(dtype=dtype, out=9)
    for name, found, expected in zip(
        ("y", "x", "weight1", "bias1", "weight2", "bias2", "residual"),
        outputs_and_gradients(mlp, args, "core"),
        outputs_and_gradients(mlp, args, "torch"),
        strict=True,
    ):
        error = float((found - expected).detach().abs().max() / expected.detach().abs().max())
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("rows, hidden", [(1, 4), (255, 3072), (25088, 384), (1000, 7), (784, 768)])
def test_chunks_cover_every_row_once(rows, hidden):
    parts = core.chunks(rows, hidden)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
    assert max(part.stop - part.start for part in parts) == parts[0].stop


@needs_core
def test_no_grad_and_strided_input():
    x, *weights = arguments()
    expected = mlp(x, *weights).detach()
    strided = x.detach().repeat_interleave(2, dim=1)[:, ::2]
    with torch.inference_mode(), use("core"):
        torch.testing.assert_close(mlp(strided, *weights), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_linear_gives(dtype):
    args = arguments(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = mlp(*args)
        bare = mlp(*args[:-1])
        expected = torch.nn.functional.linear(args[0], args[1]).dtype
    assert bare.dtype == expected == dtype
    assert y.dtype == torch.float32  # a float32 residual stream stays one
    exact = mlp(*args)
    assert (y - exact).abs().max() <= 0.02 * exact.abs().max()  # a few roundings of half precision


@needs_core
def test_flops():
    args = arguments(dtype=torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mlp(*args)
    assert counter.get_total_flops() == 2 * 3 * 50 * 7 * (2 * 12 * 48)


@pytest.mark.parametrize(
    "index, shape, message",
    [
        (0, (3, 50, 7, 11), r"x must be \(..., C\) and weight1 \(H, C\) with the same C, got \(3, 50, 7, 11\)"),
        (2, (47,), r"bias1 must be \(48,\), got \(47,\)"),
        (3, (12, 47), r"weight2 must be \(O, H\) with H = 48"),
        (4, (1,), r"bias2 must be \(12,\), got \(1,\)"),
        (5, (3, 50, 1), r"residual must be \(3, 50, 7, 12\) like the result, got \(3, 50, 1\)"),
    ],
)
def test_bad_arguments_are_named(index, shape, message):
    args = arguments()
    args[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        mlp(*args)


def test_a_weight_on_another_device_is_named():
    args = arguments()
    args[3] = args[3].to("meta")
    with pytest.raises(ValueError, match="weight2 is on meta but x is on cpu"):
        mlp(*args)


def test_no_rows():
    args = arguments()
    with torch.no_grad():
        assert mlp(args[0][:0], *args[1:5]).shape == (0, *args[0].shape[1:])
