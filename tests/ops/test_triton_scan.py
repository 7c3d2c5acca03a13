"""The Triton scan, interpreted: outputs and every gradient against the reference in float64. Run by test_triton.py."""

import os
from functools import partial

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1: test_triton.py starts one", allow_module_level=True)

from tests.ops import interpreter  # noqa: F401  (makes it fast)
from tests.ops.agree import assert_agrees, evaluate, randn
from tests.ops.pairs import pairwise
from tests.ops.test_ss2d import PATTERNS, arguments, split
from vssm.nn import SS2D, StateFusion
from vssm.ops import Route, dispatch, explain, gpu, selective_scan, selective_scan_states, ss2d, ss2d_states, use
from vssm.ops.routes import encode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = ("x", "x_proj_weight", "dt_weight", "dt_bias", "A", "D")
# The sums over channels are products of three tf32 products on a GPU; the interpreter multiplies in float32.
GRADIENTS = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}


@pytest.fixture
def small_tiles(monkeypatch):
    """An interpreted tile takes as long as it has positions."""
    monkeypatch.setattr(gpu, "SCAN_TILE", (8, 32))


# Maps of odd size: one pixel, one tile, several, one row, one column; the last has a tile of one pixel.
MAPS = {"1x1": (1, 1), "5x5": (5, 5), "3x4": (3, 4), "1x17": (1, 17), "9x1": (9, 1)}
# In the order in which the cover meets the dearest values seldom together; the states of the first models once.
CASES = pairwise(list(DTYPES), ["raster", "cross", "unidirectional", "bidirectional"], [1, 3], list(MAPS))
MAPS["1x2"] = (1, 2)
CASES.append(("fp32", "bidirectional", 16, "1x2"))


def maps(pattern, N, shape, dtype=torch.float32, C=5, R=3, batch=2):
    H, W = shape
    given = arguments(batch=batch, C=C, H=H, W=W, K=len(pattern), N=N, R=R, dtype=torch.float32)
    return dict(zip(NAMES, given, strict=True)) | {"x": given[0].to(dtype)}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype, pattern, N, shape", CASES)
def test_ss2d(dtype, pattern, N, shape, monkeypatch):
    """Under autocast x and its projection are half and the weights float32: so here."""
    routes, dtype = PATTERNS[pattern], DTYPES[dtype]
    tensors = maps(routes, N, MAPS[shape], dtype, batch=2 if shape == "3x4" else 1)
    tensors["x_proj_weight"] = tensors["x_proj_weight"].to(dtype).float()  # what the projection sees
    # The projection rounds once in half precision, which the reference does not.
    coarse = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    functions = (ss2d, split) if N == 1 else (ss2d,)
    for function in functions:
        (y,) = assert_agrees(
            lambda *, f=function, **k: f(*k.values(), routes=routes),
            tensors,
            "triton",
            coarse,
            max(coarse, GRADIENTS[dtype]),
        )
        assert y.dtype == torch.float32
        monkeypatch.setattr(gpu, "SCAN_SEQUENTIAL", True)
        with use("triton"):
            torch.testing.assert_close(function(*tensors.values(), routes=routes), y, rtol=1e-5, atol=1e-5)
        monkeypatch.setattr(gpu, "SCAN_SEQUENTIAL", None)


def sequences(K, C, N, L, dtype=torch.float32, batch=2):
    t = {"u": randn(batch, K * C, L), "dt": 0.5 * randn(batch, K * C, L, seed=1)}
    t |= {"A": -torch.exp(0.5 * randn(K * C, N, seed=2)), "B": randn(batch, K, N, L, seed=3)}
    t |= {"C": randn(batch, K, N, L, seed=4), "D": randn(K * C, seed=5), "dt_bias": randn(K * C, seed=6) - 1}
    t |= {"initial_state": randn(batch, K * C, N, seed=7)}
    return t | {name: t[name].to(dtype) for name in ("u", "dt", "B", "C")}


@pytest.mark.parametrize("dtype, N, L", [*pairwise(list(DTYPES), [1, 3], [1, 15, 33]), ("fp32", 16, 9)])
def test_selective_scan(dtype, N, L, monkeypatch):
    dtype = DTYPES[dtype]
    tensors = sequences(2, 3, N, L, dtype, batch=1)
    tolerance = GRADIENTS[dtype]

    def scan(**k):
        return selective_scan(**k, dt_softplus=True, return_last_state=True)

    y, last = assert_agrees(scan, tensors, "triton", grad_tolerance=tolerance)
    assert y.dtype == last.dtype == torch.float32
    with monkeypatch.context() as patch, use("triton"):
        patch.setattr(gpu, "SCAN_SEQUENTIAL", True)
        torch.testing.assert_close(scan(**tensors), (y, last), rtol=1e-5, atol=1e-5)
    if N > 1:
        return
    for name in ("D", "dt_bias", "initial_state"):
        tensors[name] = None
    tensors["dt"] = tensors["dt"].abs()
    assert_agrees(lambda **k: selective_scan(**k), tensors, "triton", grad_tolerance=tolerance)
    del tensors["C"], tensors["D"]
    assert_agrees(lambda **k: selective_scan_states(**k, dt_softplus=True), tensors, "triton", grad_tolerance=tolerance)


@pytest.mark.usefixtures("small_tiles")
def test_channels_beyond_a_tile_and_routes_of_ones_own():
    routes = (Route("columns", -1), Route("rows", 1), Route("columns", -1))
    tensors = maps(routes, 2, (2, 5), C=33, R=17, batch=1)
    assert_agrees(lambda **k: ss2d(*k.values(), routes=routes), tensors, "triton", grad_tolerance=1e-5)


def test_chained_tiles_beyond_a_block():
    """More tiles than `state_passing` takes at once, and a second block that is not full."""
    tensors = sequences(1, 2, 1, 16 * 64 + 40, batch=1)
    with use("triton"):
        y, last = selective_scan(**tensors, dt_softplus=True, return_last_state=True)
    with use("torch"):
        exact = {k: t.double() for k, t in tensors.items()}
        expected, expected_last = selective_scan(**exact, dt_softplus=True, return_last_state=True)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.double(), expected_last, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_tiles")
def test_memory_formats_and_the_same_bits_twice():
    tensors = maps(PATTERNS["cross"], 1, (2, 5), batch=1)
    first, grads = evaluate(lambda **k: ss2d(*k.values()), tensors, "triton")
    again, again_grads = evaluate(lambda **k: ss2d(*k.values()), tensors, "triton")
    assert torch.equal(first[0], again[0]) and all(torch.equal(g, again_grads[k]) for k, g in grads.items())
    assert first[0].is_contiguous(memory_format=torch.channels_last)
    x = tensors["x"]
    for other in (
        x.contiguous(memory_format=torch.channels_last),
        x.repeat_interleave(2, dim=3)[..., ::2],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        with use("triton"):
            assert torch.equal(ss2d(**tensors | {"x": other}), first[0])


def test_a_backward_takes_the_path_of_its_forward():
    tensors = {k: t.requires_grad_() for k, t in maps(PATTERNS["raster"], 1, (2, 3)).items()}
    with use("triton"):
        y = ss2d(*tensors.values(), routes=PATTERNS["raster"])
    y.sum().backward()
    with use("reference"):
        expected = torch.autograd.grad(ss2d(*tensors.values(), routes=PATTERNS["raster"]).sum(), tensors["A"])
    torch.testing.assert_close(tensors["A"].grad, expected[0], rtol=1e-5, atol=1e-6)


def test_interpreted_kernels_run_only_on_demand():
    assert dispatch.choose("ss2d", torch.empty(1)) != "triton"
    with use("triton"):
        assert dispatch.choose("ss2d", torch.empty(1), dispatch.requested()) == "triton"
        assert explain("ss2d").choices[0].path == "triton"
        with pytest.raises(dispatch.PathUnavailable, match="tensor is float64; convert it with"):
            ss2d(*arguments())
        with pytest.raises(dispatch.PathUnavailable, match="tensor is float64"):
            tensors = maps(PATTERNS["cross"], 1, (2, 2))
            ss2d(**tensors | {"A": tensors["A"].double()})


def test_a_whole_model_with_and_without_gradients():
    """Operators without a kernel run torch's."""
    torch.manual_seed(0)
    for mixer in (SS2D(16), SS2D(16, scan="raster", gate=True, state_fn=StateFusion(32))):
        x = torch.randn(1, 3, 2, 16)
        with use("torch"):
            expected = mixer(x)
        with use("triton"):
            torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)
            with torch.inference_mode():
                torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


def test_sizes_beyond_the_kernels_are_named(monkeypatch):
    """Before anything runs: a forward refuses what its backward would."""
    monkeypatch.setattr(gpu, "launch", None)
    routes, message = PATTERNS["raster"], "{} = 257 is too large for the Triton scan, which takes up to 256; use the"
    gy = torch.zeros(1, 1, 1, 1)
    for name, N, R in (("R", 1, 257), ("N", 257, 1)):
        given = tuple(maps(routes, N, (1, 1), C=1, R=R, batch=1).values())
        projected = given[0], torch.zeros(1, 1, 1, R + 2 * N), *given[2:]
        for scan, inputs in (
            (partial(ss2d, routes=routes), given),
            (partial(ss2d_states, routes=routes), given[:-1]),
            (torch.ops.vssm.ss2d_backward, (gy, *projected, encode(routes), "triton")),
        ):
            with use("triton"), pytest.raises(ValueError, match=message.format(name)):
                scan(*inputs)
    t = sequences(1, 1, 257, 1, batch=1)
    for scan, names in ((selective_scan, "u dt A B C D"), (selective_scan_states, "u dt A B")):
        with use("triton"), pytest.raises(ValueError, match=message.format("N")):
            scan(*(t[name] for name in names.split()))


def test_a_grid_beyond_the_gpu_is_named():
    with pytest.raises(ValueError, match=r"\(70000, 65536, 1\) programs exceeds the GPU's"):
        gpu.launch(None, (70000, 1 << 16, 1), torch.device("cpu"))


@pytest.mark.usefixtures("small_tiles")
def test_not_a_number_stays_in_its_sample():
    tensors = maps(PATTERNS["cross"], 1, (3, 3), batch=3)
    tensors["x"][1, 2, 1, 1] = float("nan")
    with use("triton"):
        h, _ = ss2d_states(*list(tensors.values())[:-1])
        y = ss2d(*tensors.values())
    for value in (h, y):
        assert torch.isfinite(value[[0, 2]]).all() and not torch.isfinite(value[1]).all()
