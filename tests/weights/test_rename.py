"""Official names and ours, both ways, against every published key list."""

import pytest
import torch

import vssm
from tests.goldens import official_keys, official_state
from vssm.weights.rename import OURS, SPATIAL_MAMBA, VIM, VMAMBA, family_of, to_official, to_ours

NAMES = list(official_keys())


def _model(name):
    options = {}
    if name.startswith("backbone_"):
        name, options = name.removeprefix("backbone_"), {"features_only": True, "out_norms": True}
    with torch.device("meta"):
        model = vssm.create_model(name, **options)
    return model.model if options else model


def _empty(keys):
    return {name: torch.empty(shape, device="meta") for name, shape in keys}


def _shapes(state):
    return {name: tuple(t.shape) for name, t in state.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_published_list(name):
    official = _empty(official_keys()[name])
    family = family_of(official)
    assert family == (VIM if "vim" in name else SPATIAL_MAMBA if "spatial" in name else VMAMBA)
    ours = to_ours(official, family)
    assert _shapes(ours) == _shapes(_model(name).state_dict())
    assert family_of(ours) == OURS
    assert _shapes(to_official(ours, family)) == _shapes(official)
    assert list(to_official(ours, family)) == list(official)  # the order of a file is kept both ways


def test_values_go_through_unchanged():
    keys = [(n, s) for n, s in official_keys()["spatial_mamba_tiny"] if n.startswith(("layers.0", "patch", "norm"))]
    official = official_state(keys)
    back = to_official(to_ours(official, SPATIAL_MAMBA), SPATIAL_MAMBA)
    assert all(torch.equal(back[name], tensor) for name, tensor in official.items())


def test_a_downsampling_moves_to_the_next_stage():
    ours = to_ours(_empty([("layers.0.downsample.1.weight", (8, 4, 3, 3))]), VMAMBA)
    assert list(ours) == ["stages.1.downsample.conv.weight"]


def test_older_vanilla_names():
    new = official_keys()["vanilla_vmamba_tiny"]
    replace = {
        "patch_embed.0.": "patch_embed.proj.",
        "patch_embed.2.": "patch_embed.norm.",
        ".op.": ".self_attention.",
        "classifier.norm.": "norm.",
        "classifier.head.": "head.",
    }

    def old(name):
        name = name.replace(".norm.", ".ln_1.") if ".blocks." in name else name
        for a, b in replace.items():
            name = name.replace(a, b)
        return name

    older = [(old(name), shape) for name, shape in new]
    assert family_of(_empty(older)) == VMAMBA
    assert _shapes(to_ours(_empty(older), VMAMBA)) == _shapes(to_ours(_empty(new), VMAMBA))


@pytest.mark.parametrize("name", ["vmamba_tiny_s2l5", "vanilla_vmamba_tiny"])
def test_single_file_names(name):
    official = official_state(official_keys()[name])
    single = {}
    for key, tensor in official.items():
        if key.endswith("op.x_proj_weight"):
            key, tensor = key.replace("x_proj_weight", "x_proj.weight"), tensor.flatten(0, 1)
        elif key.endswith("op.dt_projs_weight"):
            key, tensor = key.replace("dt_projs_weight", "dt_projs.weight"), tensor.flatten(0, 1)
        elif name.startswith("vanilla") and "downsample" in key:
            key = key.replace("downsample.norm", "downsample.1").replace("downsample.reduction", "downsample.2")
        elif tensor.dim() == 2 and not key.endswith(("A_logs", "dt_projs_bias")):
            tensor = tensor[:, :, None, None]  # saved from a 1x1 convolution
        single[key] = tensor
    want, got = to_ours(official, VMAMBA), to_ours(single, VMAMBA)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_other_networks_belong_to_no_family():
    assert family_of(["layer1.0.conv1.weight", "fc.weight"]) is None
