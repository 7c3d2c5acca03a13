"""Logits in half precision: as near to float64 as torch's own operators come."""

import statistics

import pytest
import torch

from tests.benchmark_scripts import load
from tests.ops.agree import needs_core

VIM = pytest.param("vim_nano", marks=pytest.mark.full)


@pytest.fixture(scope="module")
def fidelity():
    return load("fidelity")


@needs_core
@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", ["vmamba_nano", "spatial_mamba_nano", VIM])
def test_logits_are_as_near_to_float64_as_torch_comes(fidelity, name, mode):
    ratios = []
    for seed in range(3):
        model = fidelity.build(name, seed, num_classes=50)
        images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        ours = fidelity.error(model, images, mode)
        model.load_state_dict(state)
        assert ours < 0.05
        ratios.append(ours / fidelity.error(model, images, mode, "torch"))
    assert statistics.median(ratios) < 1.15
