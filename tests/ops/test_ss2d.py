"""SS2D, whole and split, on every path against its reference; routes; the cascade."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ops.agree import PATHS
from tests.ops.test_selective_scan import assert_close
from vssm.ops import (
    BIDIRECTIONAL,
    CROSS,
    RASTER,
    UNIDIRECTIONAL,
    Route,
    ss2d,
    ss2d_cascade,
    ss2d_readout,
    ss2d_states,
    use,
)
from vssm.ops.routes import decode, encode, to_map, to_sequence, visit_order

PATTERNS = {"cross": CROSS, "unidirectional": UNIDIRECTIONAL, "bidirectional": BIDIRECTIONAL, "raster": RASTER}
DATA = Path(__file__).parents[1] / "data" / "vmamba"


def arguments(batch=2, C=5, H=4, W=7, K=4, N=1, R=2, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = normal(batch, C, H, W)
    x_proj = normal(K, R + 2 * N, C) / C**0.5
    weights = normal(K, C, R) / R**0.5, normal(K, C) - 2, -torch.exp(0.5 * normal(K * C, N)), normal(K * C)
    return [t.to(dtype) for t in (x, x_proj, *weights)]


def outputs_and_gradients(function, leaves):
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = function(*leaves)
    weight = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


def split(x, x_proj, dt_weight, dt_bias, A, D, routes):
    h, C = ss2d_states(x, x_proj, dt_weight, dt_bias, A, routes)
    return ss2d_readout(h, C, x, D)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("pattern, N", list(product(PATTERNS, (1, 3))))
def test_paths_agree_with_the_reference(path, pattern, N):
    routes = PATTERNS[pattern]
    for H, W in ((4, 7), (1, 1), (1, 6), (9, 2)):
        args = arguments(H=H, W=W, K=len(routes), N=N)
        with use("reference"):
            expected = outputs_and_gradients(lambda *a: ss2d(*a, routes=routes), args)
        with use(path):
            whole = outputs_and_gradients(lambda *a: ss2d(*a, routes=routes), args)
            parts = outputs_and_gradients(lambda *a: split(*a, routes=routes), args)
        for name, e, w, p in zip("y x x_proj dt_weight dt_bias A D".split(), expected, whole, parts, strict=True):
            assert_close(w, e, 1e-12, f"{name} whole {H}x{W}")
            assert_close(p, e, 1e-12, f"{name} split {H}x{W}")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("C, H, W, R", [(96, 14, 14, 6), (33, 9, 11, 3), (200, 5, 5, 13)])
def test_float32_at_model_like_sizes(path, C, H, W, R):
    exact = arguments(C=C, H=H, W=W, R=R)
    with use("torch"):
        expected = outputs_and_gradients(ss2d, exact)
    with use(path):
        found = outputs_and_gradients(ss2d, [t.float() for t in exact])
    for name, f, e in zip("y x x_proj dt_weight dt_bias A D".split(), found, expected, strict=True):
        assert f.dtype == torch.float32
        assert_close(f, e, 2e-5, name)


def test_reference_is_the_sum_over_written_out_sequences():
    from vssm.ops import selective_scan

    x, x_proj, dt_weight, dt_bias, A, D = args = arguments(batch=1, H=3, W=4, N=2)
    total = 0
    for k, route in enumerate(CROSS):
        u = to_sequence(x, route)
        dt, B, C = torch.einsum("pc,bcl->bpl", x_proj[k], u).split([2, 2, 2], dim=1)
        dt = torch.einsum("cr,brl->bcl", dt_weight[k], dt)
        rows = slice(5 * k, 5 * k + 5)
        with use("reference"):
            y = selective_scan(u, dt, A[rows], B, C, D[rows], dt_bias[k], dt_softplus=True)
        total = total + to_map(y, route, 3, 4)
    with use("reference"):
        torch.testing.assert_close(ss2d(*args), total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_memory_format_does_not_change_the_result(path):
    args = arguments()
    last = args[0].to(memory_format=torch.channels_last)
    strided = args[0].repeat_interleave(2, dim=3)[..., ::2]
    with use(path):
        expected = ss2d(*args)
        assert expected.is_contiguous(memory_format=torch.channels_last)
        # Not to the bit: the BLAS library may sum the projection in another order for another layout.
        for other in (last, strided):
            torch.testing.assert_close(ss2d(other, *args[1:]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_half_input_gives_float32(path):
    args = arguments(dtype=torch.float32, C=16, H=6, W=6)
    with use(path):
        for dtype, tolerance in ((torch.bfloat16, 5e-2), (torch.float16, 5e-3)):
            y = ss2d(args[0].to(dtype), *args[1:])
            assert y.dtype == torch.float32
            assert_close(y, ss2d(*args).double(), tolerance, str(dtype))


@pytest.mark.parametrize("path", PATHS)
def test_not_a_number_stays_in_its_sample(path):
    args = arguments(batch=3, dtype=torch.float32)
    args[0][1, 2, 1, 1] = float("nan")
    args[0][1, 3, 1, 1] = float("inf")
    with use(path):
        found = outputs_and_gradients(lambda x: ss2d(x, *args[1:]), args[:1])
    for value in found:
        assert torch.isfinite(value[[0, 2]]).all()
        assert not torch.isfinite(value[1]).all()


@pytest.mark.parametrize("path", PATHS)
def test_two_runs_and_two_thread_counts_give_the_same_bits(path):
    args = arguments(batch=3, C=70, H=12, W=9, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            with use(path):
                results.append(outputs_and_gradients(ss2d, args))
    finally:
        torch.set_num_threads(threads)
    compared = slice(0, 2) if path == "torch" else slice(None)  # torch's own matmuls split sums by threads
    for other in results[1:]:
        for a, b in zip(results[0][compared], other[compared], strict=True):
            assert torch.equal(a, b) or path == "torch"


def test_compiles_as_one_graph():
    args = arguments(dtype=torch.float32)
    compiled = torch.compile(lambda *a: ss2d(*a).square().sum(), fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(lambda *a: ss2d(*a).square().sum(), args)
    found = outputs_and_gradients(compiled, args)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_routes_are_each_others_inverse_and_encode():
    x = torch.arange(2 * 3 * 5).view(2, 3, 5)
    for pattern in PATTERNS.values():
        assert decode(encode(pattern)) == pattern
        table = visit_order(tuple(encode(pattern)), 3, 5)
        for k, route in enumerate(pattern):
            assert torch.equal(to_map(to_sequence(x, route), route, 3, 5), x)
            assert torch.equal(x.flatten(1)[:, table[k].long()], to_sequence(x, route))


def test_routes_visit_pixels_as_the_official_code():
    """Stored sequences and merges of the official routes: cross, unidirectional, bidirectional."""
    with np.load(DATA / "scan_routes.npz") as stored:
        for name in ("x0", "x1", "x2", "x3"):
            x = torch.from_numpy(stored[name])
            for mode, pattern in enumerate((CROSS, UNIDIRECTIONAL, BIDIRECTIONAL)):
                sequences = torch.stack([to_sequence(x, route) for route in pattern], dim=1)
                assert torch.equal(sequences, torch.from_numpy(stored[f"{name}.scan{mode}"]))


@pytest.mark.parametrize("path", PATHS)
def test_cascade_adds_the_backward_direction_unturned(path):
    """One row, one channel: the second direction's output at time t lands at position t."""
    x, x_proj, dt_weight, dt_bias, A, D = args = arguments(batch=1, C=3, H=1, W=5)
    with use(path):
        y = ss2d_cascade(*args)
    with use("reference"):
        torch.testing.assert_close(y, ss2d_cascade(*args), rtol=1e-11, atol=1e-11)
    assert y.shape == x.shape


@pytest.mark.parametrize(
    "index, value, message",
    [
        (0, torch.zeros(2, 5, 4), r"x must be a map \(B, C, H, W\), got \(2, 5, 4\)"),
        (0, torch.zeros(2, 5, 0, 7), "x must not be empty"),
        (0, torch.zeros(2, 5, 4, 7, dtype=torch.int32), "x has dtype torch.int32; supported"),
        (1, torch.zeros(4, 5, 5), r"x_proj_weight must be \(4, 4, 5\)"),
        (2, torch.zeros(3, 5, 2), r"dt_weight must be \(K, C, R\) with (K = 4 routes|the K = 4 groups)"),
        (3, torch.zeros(20), r"dt_bias must be \(4, 5\)"),
        (4, torch.zeros(19, 1), r"A must be \(K\*C, N\) with K\*C = 20"),
        (5, torch.zeros(5), r"D must be \(20,\)"),
        (4, torch.zeros(20, 0), "N >= 1"),
        (2, torch.zeros(4, 5, 2).int(), "dt_weight has dtype torch.int32; supported"),
        (5, torch.zeros(20, device="meta"), "D is on meta but x is on cpu"),
    ],
)
@pytest.mark.parametrize("function", [ss2d, ss2d_cascade])
def test_bad_arguments_are_named(function, index, value, message):
    args = arguments(dtype=torch.float32)
    args[index] = value
    with pytest.raises(ValueError, match=message):
        function(*args)


@pytest.mark.parametrize("index", range(6))
def test_shape_functions_know_the_dtype(index):
    args = arguments(dtype=torch.float32)
    args[index] = args[index].double()
    expected = ss2d(*args), ss2d_states(*args[:5])[0]
    meta = [a.to("meta") for a in args]
    assert [t.dtype for t in (ss2d(*meta), ss2d_states(*meta[:5])[0])] == [t.dtype for t in expected]


def test_bad_routes_are_named():
    for route in (Route("diagonal", 1), Route("rows", 2), "rows", 3):
        with pytest.raises(ValueError, match=f"unknown route {re.escape(repr(route))}: expected Route"):
            ss2d(*arguments(K=1), routes=(route,))
    with pytest.raises(ValueError, match="at least one route"):
        encode(())
