"""The compiled scan kernel, each instruction set: outputs and gradients against the float64 reference, odd sizes,
layouts, chunks, threads, special values; accuracy of its exponential and softplus."""

import pytest
import torch

from tests.ops.agree import every_isa, needs_core, randn, relative_error
from vssm.ops import native
from vssm.ops.routes import BIDIRECTIONAL, CROSS, RASTER, Route, encode
from vssm.ops.selective_scan import core as scan
from vssm.ops.selective_scan import reference as scan_reference
from vssm.ops.ss2d import core as ss2d
from vssm.ops.ss2d import reference as ss2d_reference

pytestmark = needs_core

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 6e-3}
ISAS = every_isa()


def scan_arguments(batch, K, C, N, L, options="Dbsi", dtype=torch.float64):
    """Inputs of selective_scan; options: D skip weight, b bias, s softplus, i initial state."""
    names = [(batch, K * C, L)] * 2 + [(K * C, N)] + [(batch, K, N, L)] * 2 + [(K * C,)] * 2 + [(batch, K * C, N)]
    u, dt, A, B, Cm, D, bias, initial = (randn(*s, dtype=torch.float64, seed=i) for i, s in enumerate(names))
    A, bias = -torch.exp(0.3 * A), bias - 1
    if "s" not in options:
        dt, bias = 0.3 * dt.abs(), 0.1 * bias.abs()
    given = (u, dt, A, B, Cm, D if "D" in options else None, bias if "b" in options else None)
    given += (initial if "i" in options else None, "s" in options)
    return [t.to(dtype) if isinstance(t, torch.Tensor) else t for t in given]


def ss2d_arguments(batch, C, H, W, R, N, K, skip=True, dtype=torch.float64):
    shapes = [(batch, C, H, W), (batch, H, W, K * (R + 2 * N)), (K, C, R), (K, C), (K * C, N), (K * C,)]
    x, proj, weight, bias, A, D = (randn(*s, dtype=torch.float64, seed=i) for i, s in enumerate(shapes))
    given = (x, proj, weight * R**-0.5, bias - 1, -torch.exp(0.3 * A), D if skip else None)
    return [None if t is None else t.to(dtype) for t in given]


def differentiate(function, arguments):
    """Outputs of the reference in float64, and a function from cotangents to the gradients of all tensors."""
    leaves = [t.double().requires_grad_() if isinstance(t, torch.Tensor) else t for t in arguments]
    out = function(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
    return [y.detach() for y in out], lambda *gs: torch.autograd.grad(out, tensors, gs)


def assert_close(got, expected, dtype):
    got = [g for g in got if g is not None]
    assert len(got) == len(expected)
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        assert g.shape == e.shape
        assert relative_error(g, e) <= TOLERANCE[dtype], (i, relative_error(g, e))


def check_scan(arguments, dtype):
    (y, last), pullback = differentiate(scan_reference.scan, arguments)
    gy, glast = (randn(*t.shape, dtype=dtype, seed=9) for t in (y, last))
    got = scan.forward(*arguments)
    assert all(t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for t in got)
    assert_close(got, (y, last), torch.float32 if dtype == torch.bfloat16 else dtype)
    grads = scan.backward(gy, glast, *arguments)
    assert all(g is None or g.dtype == got[0].dtype for g in grads)
    assert_close(grads, pullback(gy.double(), glast.double()), dtype)


def check_scan_states(arguments, dtype):
    arguments = [t for i, t in enumerate(arguments) if i not in (4, 5)]
    (h,), pullback = differentiate(scan_reference.states, arguments)
    gh = randn(*h.shape, dtype=dtype, seed=9)
    assert_close([scan.states_forward(*arguments)], [h], dtype)
    assert_close(scan.states_backward(gh, *arguments), pullback(gh.double()), dtype)


def check_ss2d(arguments, routes, dtype):
    routes = encode(routes)
    (y,), pullback = differentiate(lambda *t: ss2d_reference.forward(*t, routes), arguments)
    gy = randn(*y.shape, dtype=dtype, seed=9)
    got = ss2d.forward(*arguments, routes)
    assert got.permute(0, 2, 3, 1).is_contiguous()
    assert_close([got], [y], torch.float32 if dtype == torch.bfloat16 else dtype)
    assert_close(ss2d.backward(gy, *arguments, routes), pullback(gy.double()), dtype)

    arguments = arguments[:-1]
    (h,), pullback = differentiate(lambda *t: ss2d_reference.states(*t, routes), arguments)
    gh = randn(*h.shape, dtype=dtype, seed=9)
    got = ss2d.states_forward(*arguments, routes)
    assert got.permute(0, 1, 3, 4, 5, 2).is_contiguous()
    assert_close([got], [h], torch.float32 if dtype == torch.bfloat16 else dtype)
    assert_close(ss2d.states_backward(gh, *arguments, routes), pullback(gh.double()), dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "sizes, options",
    [
        ((1, 1, 1, 1, 1), "Dbsi"),
        ((2, 4, 17, 1, 37), "Dbsi"),
        ((1, 2, 96, 1, 64), ""),
        ((2, 1, 3, 2, 9), "Dsi"),
        ((1, 2, 100, 4, 24), "bs"),
        ((2, 1, 5, 5, 13), "Di"),
        ((1, 2, 33, 16, 41), "Dbsi"),
    ],
)
def test_selective_scan(isa, dtype, sizes, options):
    with native.use_isa(isa):
        check_scan(scan_arguments(*sizes, options, dtype), dtype)
        check_scan_states(scan_arguments(*sizes, options, dtype), dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "sizes, routes, skip",
    [
        ((2, 17, 5, 7, 6, 1), CROSS, True),
        ((1, 96, 4, 9, 3, 1), CROSS, False),
        ((3, 32, 7, 7, 24, 1), CROSS, True),
        ((1, 20, 6, 5, 48, 4), BIDIRECTIONAL, True),
        ((2, 1, 1, 8, 1, 1), (Route("columns", -1), Route("rows", 1)), True),
        ((2, 40, 6, 5, 17, 1), RASTER, True),
    ],
)
def test_ss2d(isa, dtype, sizes, routes, skip):
    with native.use_isa(isa):
        check_ss2d(ss2d_arguments(*sizes, K=len(routes), skip=skip, dtype=dtype), routes, dtype)


def test_half_precision_and_any_strides():
    check_scan(scan_arguments(2, 2, 17, 1, 20, dtype=torch.bfloat16), torch.bfloat16)
    check_ss2d(ss2d_arguments(2, 17, 5, 6, 6, 1, 4, dtype=torch.bfloat16), CROSS, torch.bfloat16)
    strided = scan_arguments(2, 2, 17, 4, 20)
    strided[0] = strided[0].transpose(1, 2).contiguous().transpose(1, 2)  # channels last
    strided[1] = strided[1][:, :1].expand(2, 34, 20)
    strided[3] = strided[3].flip(0).repeat(1, 1, 2, 1)[:, :, ::2]
    check_scan(strided, torch.float64)
    check_scan_states(strided, torch.float64)
    strided = ss2d_arguments(2, 17, 5, 6, 6, 1, 4)
    strided[0] = strided[0].transpose(2, 3).contiguous().transpose(2, 3)
    strided[1] = strided[1].repeat(1, 1, 1, 2)[..., ::2]
    check_ss2d(strided, CROSS, torch.float64)


@pytest.mark.parametrize("N", [1, 3])
def test_long_sequences_in_chunks(N, monkeypatch):
    """Chunks of any length give the bits of a sequence kept whole, and 1000 steps agree with the reference."""
    arguments = scan_arguments(1, 2, 5, N, 1000)
    check_scan(arguments, torch.float64)
    routes = encode(CROSS)
    map_arguments = ss2d_arguments(2, 20, 9, 11, 6, N, 4, dtype=torch.float32)
    gy = torch.ones_like(map_arguments[0])
    whole = scan.backward(arguments[0], None, *arguments), ss2d.backward(gy, *map_arguments, routes)
    for chunk in (8, 40):
        monkeypatch.setattr(scan, "CHUNK", chunk)
        cut = scan.backward(arguments[0], None, *arguments), ss2d.backward(gy, *map_arguments, routes)
        assert all(torch.equal(a, b) for w, c in zip(whole, cut, strict=True) for a, b in zip(w, c, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_bits_do_not_depend_on_threads(isa, batch):
    arguments = ss2d_arguments(batch, 100, 7, 6, 6, 1, 4, dtype=torch.float32)
    routes = encode(CROSS)
    gy = randn(*arguments[0].shape, seed=9)
    results = []
    for count in (1, 2, 3):
        with native.cpu_threads(count), native.use_isa(isa):
            results.append([ss2d.forward(*arguments, routes), *ss2d.backward(gy, *arguments, routes)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_stays_in_its_sample(isa, bad):
    clean = ss2d_arguments(3, 17, 4, 5, 6, 1, 4, dtype=torch.float32)
    routes = encode(CROSS)
    gy = torch.ones_like(clean[0])
    x, proj = clean[0].clone(), clean[1].clone()
    x[1, 3, 2, 2] = bad
    proj[1, 0, 0, 2] = bad
    with native.use_isa(isa):
        y, clean_y = ss2d.forward(x, proj, *clean[2:], routes), ss2d.forward(*clean, routes)
        grads, clean_grads = ss2d.backward(gy, x, proj, *clean[2:], routes), ss2d.backward(gy, *clean, routes)
    assert not y[1].isfinite().all()
    for got, expected in ((y, clean_y), *zip(grads[:2], clean_grads[:2], strict=True)):
        assert torch.equal(got[::2], expected[::2])


@pytest.mark.parametrize("isa", ISAS)
def test_softplus_and_exponential_are_accurate(isa):
    """Within 4e-7 of the exact value over the whole range; infinities, NaN and exact zeros as torch has them."""
    z = torch.cat([torch.linspace(-85, 85, 40001), torch.linspace(-2, 2, 40001), torch.linspace(18, 22, 999)])
    one = torch.ones(1, 1, z.numel())
    with native.use_isa(isa):
        # With A = -1 and B = u = 1 from zero, the state after one step is the step size.
        def softplus(z):
            steps, ones = z.view(-1, 1, 1), torch.ones(z.numel(), 1, 1)
            return scan.states_forward(ones, steps, -torch.ones(1, 1), ones[:, None], None, None, True).flatten()

        # With u = 0 from one, the state after one step of size 1 is exp(A).
        def exponential(a):
            unit = one[:, :, : a.numel()].transpose(1, 2)
            B = torch.ones(1, 1, 1, 1)
            return scan.forward(0 * unit, unit, a.view(-1, 1), B, B, None, None, unit, False)[1].flatten()

        got, exact = softplus(z), torch.nn.functional.softplus(z.double())
        assert ((got.double() - exact).abs() / exact).max() < 4e-7
        a = z[z.abs() < 80]
        got, exact = exponential(a), torch.exp(a.double())
        # the argument's own rounding to a power of two counts 6e-8 per unit of a
        assert ((got.double() - exact).abs() / exact / (4e-7 + 1.2e-7 * a.abs())).max() < 1

        inf, nan = float("inf"), float("nan")
        special = torch.tensor([-inf, -200.0, -104.0, 0.0, 88.0, 200.0, inf, nan])
        assert torch.allclose(
            softplus(special), torch.nn.functional.softplus(special), rtol=4e-7, atol=1e-37, equal_nan=True
        )
        assert torch.allclose(exponential(special), torch.exp(special), rtol=2e-5, atol=1e-37, equal_nan=True)


def test_arguments_the_kernel_refuses():
    with pytest.raises(RuntimeError, match="scan_forward failed: arguments"):
        scan.run("scan_forward", torch.float32, scan.Sizes(1, 1, 1, 1, 0, 1, True, True), {})
    with pytest.raises(ValueError, match="instruction set 'mmx' is not available here"), native.use_isa("mmx"):
        pass
