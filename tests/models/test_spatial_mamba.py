"""Spatial-Mamba: options, initialisation, weight decay, published sizes."""

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

import vssm
from vssm.nn import StateFusion


def test_weight_decay_groups_are_the_effective_official_ones():
    model = vssm.create_model("spatial_mamba_nano")
    without, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    names = {id(p): n for n, p in model.named_parameters()}
    leaves = [{names[id(p)].rpartition(".")[2] for p in group["params"]} for group in (without, decayed)]
    assert {"dt_proj_bias", "D", "alphas", "bias"} <= leaves[0]
    assert {"A_log", "x_proj_weight", "dt_proj_weight", "0", "1", "2"} <= leaves[1]  # 0..2: fusion kernels
    assert not {"dt_proj_bias", "D", "alphas"} & leaves[1]


@torch.no_grad()
def test_initialisation():
    model = vssm.create_model("spatial_mamba_tiny")
    mixer = model.stages[2].blocks[3].mixer
    assert all((kernel == 1).all() for kernel in mixer.state_fn.kernels) and (mixer.state_fn.alphas == 1).all()
    assert (mixer.A_log == 0).all() and (mixer.D == 1).all()
    assert mixer.in_proj.weight.std() == pytest.approx(0.02, rel=0.02)
    assert mixer.out_proj.weight.std() == pytest.approx(0.02, rel=0.02)
    assert mixer.dt_proj_weight.abs().max() <= 0.25
    dt = nn.functional.softplus(mixer.dt_proj_bias)
    assert dt.min() > 0.99e-3 and dt.max() < 0.101
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5 and module.momentum == 0.1


@pytest.mark.parametrize("size, count", [("tiny", 26748862), ("small", 43074280), ("base", 95745592)])
def test_published_parameter_counts(size, count):
    with torch.device("meta"):
        model = timm.create_model(f"spatial_mamba_{size}")
    assert sum(p.numel() for p in model.parameters()) == count


def test_nano_is_small():
    found = vssm.complexity(vssm.create_model("spatial_mamba_nano"))
    assert found.params < 1.5e6 and found.macs < 40e6


def test_dilations_are_values():
    x = torch.randn(1, 3, 32, 32)
    sizes = {}
    for dilations in ((), (1,), (1, 3), (1, 3, 5)):
        model = vssm.create_model("spatial_mamba_nano", dilations=dilations).eval()
        assert model(x).isfinite().all()
        sizes[dilations] = sum(p.numel() for p in model.parameters())
    inner = sum(2 * dim * depth for dim, depth in zip((24, 48, 96), (1, 2, 2), strict=True))
    blocks = 1 + 2 + 2
    assert sizes[(1,)] - sizes[()] == 9 * inner + blocks
    assert sizes[(1, 3, 5)] - sizes[(1,)] == 2 * (9 * inner + blocks)


def test_kernel_size_is_a_value():
    x = torch.randn(1, 3, 32, 32)
    counts = {}
    for size in (1, 3, 5):
        model = vssm.create_model("spatial_mamba_nano", kernel_size=size).eval()
        assert model(x).isfinite().all()
        counts[size] = vssm.complexity(model, 32)
    inner = [2 * dim * depth for dim, depth in zip((24, 48, 96), (1, 2, 2), strict=True)]
    pixels = sum(channels * side**2 for channels, side in zip(inner, (16, 8, 4), strict=True))
    for size in (1, 5):
        more = 3 * (size**2 - 9)  # taps of three kernels
        assert counts[size].params - counts[3].params == more * sum(inner)
        assert counts[size].by_operator["conv"] - counts[3].by_operator["conv"] == more * pixels


@pytest.mark.parametrize(
    "options",
    [
        {"d_state": 3, "ssm_ratio": 1.0, "mlp_ratio": 2.0},
        {"dims": [16, 24], "depths": [1, 2], "patch_size": 4, "init": "zero"},
        {"state_fn": lambda dim, routes, d_state: StateFusion(dim, routes, d_state, dilations=(2,))},
    ],
)
def test_options_are_plain_values(options):
    model = vssm.create_model("spatial_mamba_nano", num_classes=3, **options)
    y = model(torch.randn(2, 3, 33, 40))
    assert y.shape == (2, 3) and y.isfinite().all()
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_bad_options_are_refused():
    for options, message in (
        ({"patch_size": 5}, "unknown patch_size 5: choose one of 2, 4, 8"),
        ({"mlp_ratio": 0}, "mlp_ratio must be positive"),
        ({"dilations": (0,)}, "dilations must be positive"),
        ({"kernel_size": 4}, "kernel_size must be odd and at least 1, got 4"),
        ({"init": "ones"}, "unknown init 'ones'"),
    ):
        with pytest.raises(ValueError, match=message):
            vssm.create_model("spatial_mamba_nano", **options)


def test_evaluation_follows_the_weights():
    """The fusion kernels in use are never those of an earlier evaluation."""
    model = vssm.create_model("spatial_mamba_nano", num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first = model(x)
        for stage in model.stages:
            for block in stage.blocks:
                block.mixer.state_fn.alphas.mul_(-1)
        changed = model(x)
        fresh = vssm.create_model("spatial_mamba_nano", num_classes=3).eval()
        fresh.load_state_dict(model.state_dict())
        assert (changed - first).abs().max() > 1e-4
        torch.testing.assert_close(changed, fresh(x))
