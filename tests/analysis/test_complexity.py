"""Parameters and multiply-adds against the authors' own counts; the papers' tables are in tests/analysis/tables."""

import json
from functools import cache, partial

import pytest
import timm
import torch
from torch import nn

import vssm
from tests.goldens import DATA
from vssm.nn import StateFusion

KNOWN = json.loads((DATA / "complexity.json").read_text())


def _model(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


@cache
def _count(name, size=224, **options):
    return vssm.complexity(_model(name, **options), size)


@pytest.mark.parametrize("name", KNOWN["vmamba"])
def test_vmamba_counts_of_the_authors(name):
    for size, macs in KNOWN["vmamba"][name]["macs"].items():
        found = _count(name, int(size))
        assert found.params == KNOWN["vmamba"][name]["params"]
        if name.startswith("vanilla"):
            # Their counter rounds every einsum to four digits.
            assert found.macs == pytest.approx(macs, rel=3e-5)
        else:
            assert found.macs == macs


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_spatial_mamba_counts_of_the_authors(size):
    known = KNOWN["spatial_mamba"][size]
    found = _count(f"spatial_mamba_{size}")
    assert found.params == known["params"]
    operators = dict(found.by_operator)
    pool = operators.pop("pool")  # their pooling is a mean over tokens, which their counter does not see
    assert pool == 49 * {"tiny": 512, "small": 512, "base": 768}[size]
    want = {key: round(value * 1e9) for key, value in known["by_operator"].items()}
    want["linear"] += want.pop("matmul")
    assert operators == want
    assert found.macs - pool == round(known["gflops_official_train_flags"] * 1e9)


@pytest.mark.parametrize("input_size", [(800, 1280), (512, 2048)])
@pytest.mark.parametrize("size", ["tiny", *(pytest.param(n, marks=pytest.mark.full) for n in ("small", "base"))])
def test_spatial_mamba_backbones(size, input_size):
    known = KNOWN["spatial_mamba"][size]
    key = "1280x800" if input_size == (800, 1280) else "512x2048"
    backbone = _count(f"spatial_mamba_{size}", input_size, features_only=True, out_norms=True)
    assert backbone.params == known["backbone_params_with_outnorms"]
    assert backbone.macs == round(known[f"backbone_gflops_{key}"] * 1e9)


def test_state_fusion_on_vmamba():
    known = KNOWN["vmamba_tiny_sasf"]
    plain, fused = _count("vmamba_tiny"), _count("vmamba_tiny", state_fn=partial(StateFusion, dilations=(1, 3, 5)))
    assert fused.params - plain.params == known["added_params"]
    assert fused.by_operator["conv"] - plain.by_operator["conv"] == round(known["added_gmac"] * 1e9)
    # C and the skip leave the scan: element-wise products count nothing.
    skip = round(known["scan_without_C_saves"] * 1e9) // 2
    assert plain.by_operator["scan"] - fused.by_operator["scan"] == 3 * skip


@pytest.mark.parametrize(
    "name, params, gmacs",
    [("swin_tiny_patch4_window7_224", 28.3, 4.5), ("convnext_tiny", 28.6, 4.5), ("deit_small_patch16_224", 22.1, 4.6)],
)
def test_other_timm_models(name, params, gmacs):
    found = _count(name)
    assert f"{found.params / 1e6:.1f} {found.macs / 1e9:.1f}" == f"{params} {gmacs}"


def test_counts_of_single_operators():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.norm = nn.BatchNorm2d(8)
            self.fc = nn.Linear(4, 10)

        def forward(self, x):
            x = self.up(self.norm(self.conv(x)))
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
            return self.fc(x.mean((2, 3)))

    conv, up, norm, fc = 8 * 6 * 5 * 2 * 9, 8 * 6 * 5 * 4 * 4, 8 * 6 * 5, 40
    found = vssm.complexity(Net(), (4, 12, 10))
    assert found.by_operator == {
        "conv": conv + up,
        "batch_norm": 5 * norm,
        "upsample": 4 * 4 * 24 * 20,
        "pool": 4 * 24 * 20,
        "linear": fc,
    }
    evaluated = vssm.complexity(Net(), (4, 12, 10), batch_norm="eval")
    assert found.macs - evaluated.macs == 3 * norm


@pytest.mark.parametrize("name", ["vmamba_nano", "spatial_mamba_nano", "vim_nano"])
def test_a_model_on_the_meta_device_counts_the_same(name):
    assert vssm.complexity(_model(name)) == vssm.complexity(vssm.create_model(name))


def test_a_model_without_tensors():
    assert vssm.complexity(nn.Identity(), (3, 8, 8)).macs == 0


def test_leaves_the_model_as_it_was():
    model = vssm.create_model("spatial_mamba_nano")
    model.stem.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    text = str(vssm.complexity(model))
    assert "SpatialMamba, 3 x 32 x 32: 0." in text and "linear" in text
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Keeping(nn.Module):
    """Computes something once, as the attention biases of timm's EfficientFormerV2 and LeViT."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.kept: dict[str, torch.Tensor] = {}
        self.last = None

    def forward(self, x):
        if "bias" not in self.kept:
            self.kept["bias"] = self.last = 2 * self.weight
        return x.mean((2, 3)) + self.kept["bias"]


def test_what_a_model_keeps_is_not_made_of_fake_tensors():
    model = Keeping()
    vssm.complexity(model, 8)
    assert model.kept == {} and model.last is None and model.training
    assert torch.equal(model(torch.zeros(1, 3, 8, 8)), torch.full((1, 3), 2.0))


def test_a_demanded_path_changes_nothing():
    model = vssm.create_model("spatial_mamba_nano")
    want = vssm.complexity(model)
    for path in ("reference", "torch"):
        with vssm.ops.use(path):
            assert vssm.complexity(model) == want
            assert vssm.ops.dispatch.requested() == path


def test_bad_input():
    model = vssm.create_model("vmamba_nano")
    with pytest.raises(ValueError, match="must be"):
        vssm.complexity(model, (0, 32))
    with pytest.raises(ValueError, match="choose one of train, eval"):
        vssm.complexity(model, batch_norm="both")
    with pytest.raises(ValueError, match="has no pretrained_cfg"):
        vssm.complexity(nn.Linear(3, 3))
