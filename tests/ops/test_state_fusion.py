"""state_fusion and fold_kernels: the official numbers, every path against the reference."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.fill import fill, golden_input
from tests.ops.agree import CORE, PATHS, assert_agrees, evaluate, every_isa, needs_core, randn
from vssm.ops import fold_kernels, native, state_fusion, state_fusion_readout, use

DILATIONS = [1, 3, 5]
EVERY_PATH = ["reference", *PATHS]
OFFICIAL = ("kernel_3", "kernel_3_1", "kernel_3_2")


def arguments(shape, dtype=torch.float32, dilations=DILATIONS, weight_dtype=None):
    weight_dtype = weight_dtype or dtype
    t = {"h": randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)}
    for i in range(len(dilations)):
        t[f"kernel{i}"] = randn(shape[1], 1, 3, 3, dtype=weight_dtype, seed=i + 1) / 3
    t["alphas"] = randn(len(dilations), dtype=weight_dtype, seed=9)
    return t


def fusion(dilations=DILATIONS):
    """state_fusion as a function of flat arguments."""
    return lambda h, alphas, **kernels: state_fusion(h, list(kernels.values()), alphas, dilations)


# ---- the official numbers (tests/data/spatial_mamba/state_fusion.npz, float32) ----


@pytest.fixture(scope="module")
def stored():
    with np.load(Path(__file__).parents[1] / "data" / "spatial_mamba" / "state_fusion.npz") as file:
        return {k: file[k] for k in file.files}


def official(channels):
    kernels = [torch.from_numpy(fill(name, (channels, 1, 3, 3))) for name in OFFICIAL]
    return kernels, torch.from_numpy(fill("alpha", (3,)))


def cases(stored):
    for j, (C, H, W) in enumerate(json.loads(str(stored["meta"]))["cases"]):
        yield f"c{j}", torch.from_numpy(golden_input(300 + j, (2, C, H, W))), golden_input(400 + j, (2, C, H, W))


def assert_close(found, expected, atol=2e-6):
    expected = torch.from_numpy(expected)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= atol * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("path", EVERY_PATH)
def test_official_outputs(stored, path):
    for case, h, _ in cases(stored):
        kernels, alphas = official(h.shape[1])
        with use(path):
            fused = state_fusion(h, kernels, alphas, DILATIONS)
        assert_close(fused, stored[f"{case}.train"])
        assert_close(fused, stored[f"{case}.eval"])
        # A zero border, the usual mistake, is far away.
        assert np.abs(fused.numpy() - stored[f"{case}.zero_border_not_official"]).max() > 0.1


@pytest.mark.parametrize("path", EVERY_PATH)
def test_official_gradients(stored, path):
    for case, h, cotangent in cases(stored):
        kernels, alphas = official(h.shape[1])
        leaves = [h, *kernels, alphas]
        for leaf in leaves:
            leaf.requires_grad_()
        with use(path):
            fused = state_fusion(h, kernels, alphas, DILATIONS)
        (fused * torch.from_numpy(cotangent)).sum().backward()
        for name, leaf in zip(("h", *OFFICIAL, "alpha"), leaves, strict=True):
            assert_close(leaf.grad, stored[f"{case}.grad.{name}"], atol=4e-6)


def test_official_folded_kernel(stored):
    for case, h, _ in cases(stored):
        folded = fold_kernels(*official(h.shape[1]), DILATIONS)
        assert_close(folded, stored[f"{case}.merged"], atol=1e-7)
        assert int((folded[0] != 0).sum()) == 25


@pytest.mark.parametrize("path", EVERY_PATH)
def test_weights_changed_in_place_are_seen(stored, path):
    """The official code folds its kernels at the first evaluation and keeps them."""
    h = torch.from_numpy(golden_input(350, (1, 4, 6, 6)))
    kernels, alphas = official(4)
    with use(path), torch.no_grad():
        assert_close(state_fusion(h, kernels, alphas, DILATIONS), stored["stale.first_eval"])
        for parameter in (*kernels, alphas):
            parameter.mul_(2)
        again = state_fusion(h, kernels, alphas, DILATIONS)
    assert_close(again, stored["stale.after_param_times_2_fresh_merge"])
    assert np.abs(again.numpy() - stored["stale.after_param_times_2_official"]).max() > 0.1


# ---- every path against the reference ----


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_paths_agree_with_the_reference(path, dtype):
    # Odd widths, maps smaller than a dilation, one row, one column, one pixel, more rows than one strip.
    for shape in [(2, 17, 9, 7), (1, 16, 12, 11), (2, 3, 2, 3), (1, 5, 1, 9), (1, 4, 9, 1), (1, 2, 1, 1)]:
        (y,) = assert_agrees(fusion(), arguments(shape, dtype), path)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("isa", every_isa())
def test_every_instruction_set(isa):
    with native.use_isa(isa):
        for dilations in ([1], [1, 3], [1, 3, 5], [2, 4]):
            assert_agrees(fusion(dilations), arguments((2, 19, 6, 8), dilations=dilations), "core")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dilations", [[1], [1, 3], [2], [3, 1], [1, 2, 4], [2, 2], [1, 3, 5, 7], [9]])
def test_any_dilations(path, dilations):
    assert_agrees(fusion(dilations), arguments((2, 5, 6, 8), torch.float64, dilations), path)


@pytest.mark.parametrize("path", PATHS)
def test_a_long_map_in_strips(path):
    with use(path):
        tensors = arguments((1, 2, 150, 60))
        y, grads = evaluate(fusion(), tensors, path)
    expected, expected_grads = evaluate(fusion(), tensors, "reference")
    assert torch.allclose(y[0], expected[0], atol=1e-5)
    assert torch.allclose(grads["h"], expected_grads["h"], atol=1e-5)


def test_no_dilations_is_no_fusion():
    h = randn(1, 2, 3, 3)
    assert state_fusion(h, [], torch.empty(0), []) is h


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(path, dtype):
    tensors = arguments((2, 18, 6, 5), dtype, weight_dtype=torch.float32)
    (y,) = assert_agrees(fusion(), tensors, path)
    assert y.dtype == dtype
    tensors["h"] = tensors["h"].float()
    with use(path):
        expected = fusion()(**tensors)
        with torch.autocast("cpu", dtype):
            assert torch.equal(fusion()(**tensors), expected)


@pytest.mark.parametrize("path", PATHS)
def test_any_strides(path):
    t = arguments((2, 6, 8, 9), torch.float64)

    def cropped(h, alphas, **kernels):
        return state_fusion(h[:, ::2, 1:].transpose(2, 3), [k[::2] for k in kernels.values()], alphas)

    assert_agrees(cropped, t | {"h": t["h"].contiguous()}, path)


def test_folded_kernel_is_the_convolution_and_differentiable():
    t = arguments((1, 4, 13, 14), torch.float64)
    kernels = [t[f"kernel{i}"] for i in range(3)]
    padded = F.pad(t["h"], (5, 5, 5, 5), mode="replicate")
    direct = F.conv2d(padded, fold_kernels(kernels, t["alphas"], DILATIONS), groups=4)
    with use("reference"):
        assert torch.allclose(direct, state_fusion(t["h"], kernels, t["alphas"]), rtol=0, atol=1e-13)
    leaves = [x.requires_grad_() for x in (*kernels, t["alphas"])]
    assert torch.autograd.gradcheck(lambda *x: fold_kernels(list(x[:3]), x[3], DILATIONS), leaves)


# ---- with the readout ----


def readout(h, alphas, C, u=None, D=None, **kernels):
    return state_fusion_readout(h, list(kernels.values()), alphas, C, u, D, DILATIONS[: len(kernels)])


def readout_arguments(shape, dtype=torch.float32, dilations=DILATIONS):
    t = arguments(shape, dtype, dilations)
    batch, channels, height, width = shape
    t["C"] = randn(batch, 1, height, width, dtype=dtype, seed=20)
    t["u"], t["D"] = randn(*shape, dtype=dtype, seed=21), randn(channels, dtype=dtype, seed=22)
    return t


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_readout_agrees_with_the_reference(path, dtype):
    loose = 2e-5 if dtype == torch.float32 else None  # the gradient of alphas sums everything, with cancellation
    for shape in [(2, 37, 6, 7), (1, 16, 12, 5), (2, 3, 1, 1)]:
        for dilations in ([1, 3, 5], [1]):
            (y,) = assert_agrees(readout, readout_arguments(shape, dtype, dilations), path, grad_tolerance=loose)
            assert y.is_contiguous(memory_format=torch.channels_last)
    t = readout_arguments((2, 5, 4, 3), dtype)
    del t["u"], t["D"]
    assert_agrees(readout, t, path)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_readout_is_fusion_then_product(path):
    t = readout_arguments((2, 6, 5, 4), torch.float64)
    kernels = [t[f"kernel{i}"] for i in range(3)]
    with use(path):
        expected = t["C"] * state_fusion(t["h"], kernels, t["alphas"]) + t["D"][:, None, None] * t["u"]
        assert torch.allclose(readout(**t), expected, rtol=0, atol=1e-13)
        bare = state_fusion_readout(t["h"], [], torch.empty(0), t["C"], dilations=[])
    assert torch.equal(bare, t["C"] * t["h"])


@pytest.mark.parametrize("path", PATHS)
def test_readout_of_half_precision_maps_is_float32(path):
    t = readout_arguments((1, 6, 5, 4))
    t["u"] = t["u"].bfloat16()
    (y,) = assert_agrees(readout, t, path)
    assert y.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), use(path):
        assert torch.equal(readout(**t), y)


# ---- as an operator ----


def test_scripted_and_compiled_calls_are_the_eager_one():
    t = arguments((1, 4, 5, 6))
    kernels = [t[f"kernel{i}"] for i in range(3)]
    eager = state_fusion(t["h"], kernels, t["alphas"])
    assert torch.equal(torch.jit.script(state_fusion)(t["h"], kernels, t["alphas"], DILATIONS), eager)
    compiled = torch.compile(state_fusion, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(t["h"], kernels, t["alphas"]), eager)


@pytest.mark.parametrize("path", CORE)
def test_result_does_not_depend_on_the_number_of_threads(path):
    tensors = arguments((2, 40, 20, 20))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = evaluate(fusion(), tensors, path)
        torch.set_num_threads(2)
        two = evaluate(fusion(), tensors, path)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0][0], two[0][0])
    assert all(torch.equal(one[1][k], two[1][k]) for k in one[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.ones(4, 5, 6)}, r"h must be \(B, C, H, W\), got \(4, 5, 6\)"),
        ({"h": torch.ones(1, 3, 5, 6)}, r"kernels\[0\] must be \(3, 1, 3, 3\) as h has 3 channels, got \(4, 1, 3, 3\)"),
        ({"kernels": [torch.ones(4, 1, 3, 3)]}, "1 kernels for 2 dilations"),
        ({"alphas": torch.ones(3)}, r"alphas must be \(2,\), one per dilation, got \(3,\)"),
        ({"dilations": [1, 0]}, r"dilations must be positive, got \[1, 0\]"),
        ({"h": torch.ones(1, 4, 5, 6, dtype=torch.int64)}, "h has dtype torch.int64; supported: float32"),
        ({"h": torch.ones(1, 4, 0, 6)}, r"h is empty: \(1, 4, 0, 6\)"),
        ({"alphas": torch.ones(2, device="meta")}, "alphas is on meta but h is on cpu"),
        ({"kernels": [torch.ones(4, 1, 3, 3), torch.ones(4, 1, 3, 3).int()]}, r"kernels\[1\] has dtype torch.int32"),
    ],
)
def test_errors(change, message):
    valid = {
        "h": torch.ones(1, 4, 5, 6),
        "kernels": [torch.ones(4, 1, 3, 3)] * 2,
        "alphas": torch.ones(2),
        "dilations": [1, 3],
    }
    with pytest.raises(ValueError, match=message):
        state_fusion(**(valid | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"C": torch.ones(1, 4, 5, 6)}, r"C must be \(1, 1, 5, 6\), one element per pixel"),
        ({"D": None}, "u and D belong together, got only u"),
        ({"u": torch.ones(1, 4, 6, 5)}, r"u must have the shape of h, \(1, 4, 5, 6\), got \(1, 4, 6, 5\)"),
        ({"D": torch.ones(5)}, r"D must be \(4,\)"),
        ({"D": torch.ones(4, device="meta")}, "D is on meta but h is on cpu"),
    ],
)
def test_errors_of_the_readout(change, message):
    h = torch.ones(1, 4, 5, 6)
    valid = {"C": torch.ones(1, 1, 5, 6), "u": h, "D": torch.ones(4)}
    with pytest.raises(ValueError, match=message):
        state_fusion_readout(h, [torch.ones(4, 1, 3, 3)], torch.ones(1), **(valid | change), dilations=[1])


def test_folding_nothing_is_an_error():
    with pytest.raises(ValueError, match="needs at least one kernel"):
        fold_kernels([], torch.empty(0), [])


@needs_core
def test_the_core_refuses_a_map_without_pixels():
    """A scripted model calls the operator without the checks of the public function."""
    with pytest.raises(RuntimeError, match="outside what the kernel supports"):
        torch.ops.vssm.state_fusion(torch.ones(1, 4, 0, 6), torch.ones(1, 4, 1, 3, 3), torch.ones(1), [1], "core")


@pytest.mark.parametrize("path", PATHS)
def test_a_dilation_beyond_the_map_sees_its_border(path):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(1, 3, 4, 6, generator=g, dtype=torch.float64)
    kernels, alphas = [torch.randn(3, 1, 3, 3, generator=g, dtype=torch.float64)], torch.ones(1, dtype=torch.float64)
    with use("reference"):
        expected = state_fusion(h, kernels, alphas, [100])
    with use(path):
        torch.testing.assert_close(state_fusion(h, kernels, alphas, [10**9]), expected, rtol=1e-12, atol=1e-12)
