"""State fusion with kernels of other sizes than 3x3: against the reference, and as one folded kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from tests.ops.agree import CORE, assert_agrees, randn
from vssm.ops import fold_kernels, state_fusion, state_fusion_readout, use
from vssm.ops.dispatch import PathUnavailable

DILATIONS = [1, 3]
sizes = pytest.mark.parametrize("size", [1, 5, 7])


def arguments(size, shape=(2, 3, 6, 8), dtype=torch.float64):
    kernels = {f"kernel{i}": randn(shape[1], 1, size, size, dtype=dtype, seed=i + 1) / size for i in range(2)}
    return {"h": randn(*shape, dtype=dtype), **kernels, "alphas": randn(2, dtype=dtype, seed=9)}


@sizes
def test_agrees_with_the_reference(size):
    def fusion(h, alphas, **kernels):
        return state_fusion(h, list(kernels.values()), alphas, DILATIONS)

    (y,) = assert_agrees(fusion, arguments(size), "torch")
    free = fusion(**arguments(size))  # where nobody demands a path
    assert torch.equal(free, y) and free.is_contiguous(memory_format=torch.channels_last)


@sizes
def test_readout_agrees_with_the_reference(size):
    def readout(h, alphas, C, u, D, **kernels):
        return state_fusion_readout(h, list(kernels.values()), alphas, C, u, D, DILATIONS)

    t = arguments(size)
    t["C"], t["u"] = randn(2, 1, 6, 8, dtype=torch.float64, seed=20), randn(2, 3, 6, 8, dtype=torch.float64, seed=21)
    t["D"] = randn(3, dtype=torch.float64, seed=22)
    assert_agrees(readout, t, "torch")


@sizes
def test_is_one_convolution_with_the_folded_kernel(size):
    t = arguments(size)
    kernels = [t["kernel0"], t["kernel1"]]
    folded = fold_kernels(kernels, t["alphas"], DILATIONS)
    reach = (size - 1) // 2 * 3
    assert folded.shape == (3, 1, 1 + 2 * reach, 1 + 2 * reach)
    want = F.conv2d(F.pad(t["h"], (reach,) * 4, mode="replicate"), folded, groups=3)
    torch.testing.assert_close(state_fusion(t["h"], kernels, t["alphas"], DILATIONS), want)


def test_as_an_operator():
    t = arguments(5, dtype=torch.float32)
    kernels = torch.stack([t["kernel0"], t["kernel1"]]).requires_grad_()
    opcheck(torch.ops.vssm.state_fusion.default, (t["h"].requires_grad_(), kernels, t["alphas"], DILATIONS, ""))
    scripted = torch.jit.script(state_fusion)(t["h"], [t["kernel0"], t["kernel1"]], t["alphas"], DILATIONS)
    assert torch.equal(scripted, state_fusion(t["h"], [t["kernel0"], t["kernel1"]], t["alphas"], DILATIONS))


@pytest.mark.parametrize("path", CORE)
def test_the_core_has_3x3_only(path):
    with use(path), pytest.raises(PathUnavailable, match="it fuses with 3x3 kernels, these are 5x5; leave"):
        state_fusion(torch.ones(1, 2, 4, 4), [torch.ones(2, 1, 5, 5)], torch.ones(1), [1])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 1, 4, 4)], r"must have an odd size, as they have a centre, got \(2, 1, 4, 4\)"),
        ([(2, 1, 5, 5), (2, 1, 3, 3)], r"kernels\[1\] must be \(2, 1, 5, 5\)"),
        ([(2, 1, 3, 5)], r"kernels\[0\] must be \(2, 1, 5, 5\)"),
    ],
)
def test_errors(shapes, message):
    with pytest.raises(ValueError, match=message):
        kernels = [torch.ones(shape) for shape in shapes]
        state_fusion(torch.ones(1, 2, 4, 4), kernels, torch.ones(len(kernels)), [1] * len(kernels))
