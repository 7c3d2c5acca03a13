"""One way into every model: official files of each family and files of other timm models, by each door."""

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import load_checkpoint as timm_load_checkpoint

import vssm
from tests.goldens import official_keys, official_state
from vssm.inference.checkpoint import load_weights
from vssm.inference.predictor import load_predictor
from vssm.tasks.classification import create_classifier
from vssm.weights import CheckpointError, load_checkpoint
from vssm.weights.load import to_our_names
from vssm.weights.rename import SPATIAL_MAMBA, VMAMBA, to_official

OTHERS = ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"]


def _same(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def _official(name):
    """A published list of names, filled; the small models have none, theirs are written as the authors would."""
    if name in official_keys():
        return official_state(official_keys()[name])
    model = vssm.create_model(name)
    return to_official(model.state_dict(), SPATIAL_MAMBA if "spatial" in name else VMAMBA)


@pytest.mark.parametrize("name", ["vim_tiny", "vmamba_nano", "spatial_mamba_nano"])
def test_an_official_file_by_every_door(tmp_path, name):
    official = _official(name)
    want, foreign, _ = to_our_names(official)
    assert not foreign
    file = tmp_path / "official.pth"
    torch.save({"model": official, "epoch": 299}, file)

    model = create_classifier(name, 7)
    load_weights(model, file, "reset")  # fit --init-from
    assert model.head.fc.weight.shape[0] == 7
    assert all(torch.equal(t, want[n]) for n, t in model.state_dict().items() if not n.startswith("head.fc."))

    predictor = load_predictor(file, name)  # predict --checkpoint
    assert _same(predictor.model, want)

    vssm.convert(file, tmp_path / "ours.safetensors")
    ours = load_file(tmp_path / "ours.safetensors")
    assert ours.keys() == want.keys() and all(torch.equal(ours[n], want[n]) for n in want)
    for path in (file, tmp_path / "ours.safetensors"):
        for tensor in predictor.model.state_dict().values():
            tensor.zero_()
        load_checkpoint(predictor.model, path)
        assert _same(predictor.model, want)


def _forms(state, averaged):
    """Contents that timm's own load_checkpoint takes, and those that only a prefix of Lightning keeps it from."""

    def prefixed(prefix, state=state):
        return {prefix + name: tensor for name, tensor in state.items()}

    return {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3, "arch": "x"},
        "model": {"model": state},
        "module.": {"state_dict": prefixed("module.")},
        "_orig_mod.": prefixed("_orig_mod."),
        "_orig_mod.module.": {"model": prefixed("_orig_mod.module.")},
        "module._orig_mod.": {"state_dict": prefixed("module._orig_mod.")},
        "model.": {"state_dict": prefixed("model.") | {"criterion.weight": torch.ones(3)}},
        "task.model._orig_mod.": {"state_dict": prefixed("task.model._orig_mod.")},
        "state_dict_ema alone": {"state_dict_ema": prefixed("module.")},
        "model_ema alone": {"model_ema": state, "epoch": 2},
        "both": {"state_dict": state, "state_dict_ema": averaged},
    }


@pytest.mark.parametrize("name", [*OTHERS, "vmamba_nano", "vim_nano"])
def test_every_form_of_another_timm_model(tmp_path, name):
    torch.manual_seed(0)
    model = create_classifier(name, 5)
    state, averaged = (timm.create_model(name, num_classes=5).state_dict() for _ in range(2))
    for form, content in _forms(state, averaged).items():
        file = tmp_path / "file.pth"
        torch.save(content, file)
        model.load_state_dict(averaged)
        report = load_checkpoint(model, file)
        assert _same(model, state), form
        assert report.unused == (("criterion.weight",) if form == "model." else ()), form
        if form not in ("model.", "task.model._orig_mod.", "both"):  # what timm loads
            model.load_state_dict(averaged)
            timm_load_checkpoint(model, str(file))
            assert _same(model, state), form
    assert load_checkpoint(model, file, ema=True).entry == "state_dict_ema"
    assert _same(model, averaged)


@pytest.mark.parametrize("name", OTHERS)
def test_another_timm_model_with_other_classes(tmp_path, name):
    source = timm.create_model(name, num_classes=5).state_dict()
    torch.save({"module." + n: t for n, t in source.items()}, tmp_path / "file.pth")
    model = timm.create_model(name, num_classes=7)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"The file has 5 classes, the model 7: head='reset' keeps"):
        load_checkpoint(model, tmp_path / "file.pth")
    assert _same(model, before)
    report = load_checkpoint(model, tmp_path / "file.pth", head="reset")
    classifier = model.pretrained_cfg["classifier"]
    assert set(report.initialised) == {f"{classifier}.weight", f"{classifier}.bias"} == set(report.unused)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key] if key in report.initialised else source[key])


def test_a_distilled_model_has_two_classifiers(tmp_path):
    source = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "file.pth")
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7)
    report = load_checkpoint(model, tmp_path / "file.pth", head="reset")
    assert set(report.initialised) == {
        f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")
    }


def test_files_of_other_networks_are_refused_by_other_models_too(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "file.pth")
    model = timm.create_model("test_convnext", num_classes=5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"does not fit the model; nothing was loaded.\nmissing, \d+: stem"):
        load_checkpoint(model, tmp_path / "file.pth")
    assert _same(model, before)
    with pytest.raises(CheckpointError, match="no VMamba, Spatial-Mamba or Vim weights"):
        load_checkpoint(vssm.create_model("vim_nano"), tmp_path / "file.pth")
    nameless = torch.nn.Linear(2, 2)
    torch.save(nameless.state_dict(), tmp_path / "linear.pth")
    load_checkpoint(nameless, tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="Linear names no classifier to reset"):
        load_checkpoint(nameless, tmp_path / "linear.pth", head="reset")
