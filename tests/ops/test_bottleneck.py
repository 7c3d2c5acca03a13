"""The bottleneck in strips against its plain composition."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.agree import PATHS, every_isa, needs_core, outputs_and_gradients
from vssm.ops import bottleneck, native, use
from vssm.ops.bottleneck import core

NAMES = ("y", "x", "weight1", "bias1", "weight2", "bias2", "weight3", "bias3")


def arguments(size=(7, 9), batch=3, dim=5, wide=21, out=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = ((batch, *size, dim), (wide, dim), (wide,), (wide, 1, 3, 3), (wide,), (out, wide), (out,))
    return [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def assert_agrees(args, tolerance):
    found, expected = outputs_and_gradients(bottleneck, args, "core"), outputs_and_gradients(bottleneck, args, "torch")
    for name, f, e in zip(NAMES, found, expected, strict=True):
        error = float((f - e).detach().abs().max() / e.detach().abs().max())
        assert error <= tolerance, f"{name}: {error}"


@needs_core
@pytest.mark.parametrize("in_strips", [False, True])
@pytest.mark.parametrize("size", [(6, 8), (7, 9), (5, 6), (12, 12), (9, 4), (2, 1), (1, 1)])
def test_core_agrees_with_the_composition(monkeypatch, in_strips, size):
    if in_strips:  # rows of few pixels: strips of one row of results or more
        monkeypatch.setattr(core, "STRIP_ELEMENTS", 700)
        monkeypatch.setattr(core, "SAMPLE_ELEMENTS", 0)
    assert_agrees(arguments(size), 1e-12)


@needs_core
@pytest.mark.parametrize("isa", every_isa())
@pytest.mark.parametrize("wide", [32, 200])
def test_every_instruction_set(monkeypatch, isa, wide):
    monkeypatch.setattr(core, "SAMPLE_ELEMENTS", 0)
    monkeypatch.setattr(core, "STRIP_ELEMENTS", 5 * 6 * wide)
    with native.use_isa(isa):
        assert_agrees(arguments((9, 6), wide=wide, dtype=torch.float32), 2e-5)


@pytest.mark.parametrize("size", [(56, 56), (28, 28), (14, 14), (7, 9), (301, 3), (1, 1)])
def test_strips_cover_every_row_once(size):
    height, width = size
    for wide in (8, 512, 4096):
        parts = list(core.strips(5, height, width, wide))
        results = [
            (sample, row)
            for s in parts
            for sample in range(s.samples.start, s.samples.stop)
            for row in range(s.out_top, s.out_bottom)
        ]
        assert results == [(sample, row) for sample in range(5) for row in range((height + 1) // 2)]
        for s in parts:
            assert s.top == max(2 * s.out_top - 1, 0) and s.bottom == min(2 * s.out_bottom, height)
            assert s.last == (s.bottom == height)


@needs_core
def test_results_do_not_depend_on_the_number_of_threads():
    args = arguments((20, 20), wide=300, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = outputs_and_gradients(bottleneck, args, "core")
        torch.set_num_threads(1)
        for name, a, b in zip(NAMES, two, outputs_and_gradients(bottleneck, args, "core"), strict=True):
            if name == "y":  # in float32 every product is the core's
                assert torch.equal(a, b)
            else:  # torch's products of the backward may be summed in another order
                assert (a - b).abs().max() <= 1e-6 * b.abs().max(), name
    finally:
        torch.set_num_threads(before)


@needs_core
def test_no_grad_and_strided_input():
    x, *weights = arguments()
    expected = bottleneck(x, *weights).detach()
    strided = x.detach().repeat_interleave(2, dim=1)[:, ::2]
    with torch.inference_mode(), use("core"):
        torch.testing.assert_close(bottleneck(strided, *weights), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_a_nan_stays_one(path):
    args = [t.detach() for t in arguments((4, 4), batch=2)]
    args[0][0, 0, 0, 0] = float("nan")
    with use(path):
        y = bottleneck(*args)
    assert y[0, 0, 0].isnan().all() and not y[1].isnan().any() and not y[0, 1, 1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_convolutions_give(dtype):
    args = arguments(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = bottleneck(*args)
    assert y.dtype == dtype
    exact = bottleneck(*args)
    assert (y.float() - exact).abs().max() <= 0.02 * exact.abs().max()  # a few roundings of half precision


@needs_core
@pytest.mark.parametrize("in_strips", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float64_as_the_composition(monkeypatch, dtype, autocast, in_strips):
    if in_strips:
        monkeypatch.setattr(core, "STRIP_ELEMENTS", 900)
        monkeypatch.setattr(core, "SAMPLE_ELEMENTS", 0)
    halves = [t.detach().to(dtype) for t in arguments((11, 10))]
    exact = outputs_and_gradients(bottleneck, [t.double().requires_grad_() for t in halves], "torch")
    given = [(t.float() if autocast else t).requires_grad_() for t in halves]
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        assert core_runs(given)
        found, plain = (outputs_and_gradients(bottleneck, given, path) for path in ("core", "torch"))
    for name, f, p, e in zip(NAMES, found, plain, exact, strict=True):
        assert f.dtype is p.dtype, name
        assert (f - e).norm() <= 1.2 * (p - e).norm(), name


def core_runs(args):
    """Whether the strips are computed at all, and not the composition in their place."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "strips", lambda *sizes: calls.append(sizes) or STRIPS(*sizes))
        bottleneck(*args)
    return len(calls) == 1


STRIPS = core.strips


@needs_core
def test_flops():
    args = arguments(dtype=torch.float32)
    macs = 3 * (63 * 5 * 21 + 20 * 9 * 21 + 20 * 21 * 6)
    for path in ("core", "torch"):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), use(path):
            bottleneck(*args)
        assert counter.get_total_flops() == 2 * macs


def test_compile():
    args = [t.detach() for t in arguments()]
    expected = bottleneck(*args)
    torch.testing.assert_close(torch.compile(bottleneck, fullgraph=True, backend="aot_eager")(*args), expected)


@pytest.mark.parametrize(
    "index, shape, message",
    [
        (0, (3, 7, 9, 4), r"x must be \(B, H, W, C\).*got \(3, 7, 9, 4\) and \(21, 5\)"),
        (0, (3, 0, 9, 5), r"none of them 0.*got \(3, 0, 9, 5\)"),
        (2, (20,), r"bias1 must be \(21,\), got \(20,\)"),
        (3, (21, 1, 3, 2), r"weight2 must be \(21, 1, 3, 3\), got \(21, 1, 3, 2\)"),
        (4, (1,), r"bias2 must be \(21,\), got \(1,\)"),
        (5, (6, 20), r"weight3 must be \(O, M\) with M = 21"),
        (6, (5,), r"bias3 must be \(6,\), got \(5,\)"),
    ],
)
def test_bad_arguments_are_named(index, shape, message):
    args = arguments()
    args[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        bottleneck(*args)


def test_a_weight_on_another_device_is_named():
    args = arguments()
    args[3] = args[3].to("meta")
    with pytest.raises(ValueError, match="weight2 is on meta but x is on cpu"):
        bottleneck(*args)
