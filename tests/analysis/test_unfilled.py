import timm
import torch
from torch import nn

from vssm.analysis.unfilled import Unfilled


def test_shapes_are_those_of_the_model_and_nothing_is_drawn():
    before = torch.get_rng_state()
    for name in ("vmamba_nano", "spatial_mamba_nano", "vim_nano", "test_convnext"):
        with Unfilled():
            model = timm.create_model(name)
        shapes = {n: p.shape for n, p in timm.create_model(name).state_dict().items()}
        assert {n: p.shape for n, p in model.state_dict().items()} == shapes
        torch.set_rng_state(before)
    with Unfilled():
        for fill in (nn.init.kaiming_uniform_, nn.init.ones_, torch.Tensor.zero_):
            kept = torch.arange(4.0).view(2, 2)
            assert fill(kept) is kept and kept.sum() == 6
    assert torch.equal(torch.get_rng_state(), before)
    assert nn.init.ones_(torch.zeros(2)).sum() == 2  # over when it is left
