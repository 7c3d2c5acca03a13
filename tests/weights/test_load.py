"""load_checkpoint: every form of file, every kind of bad file, and a model that never ends up half loaded."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import vssm
from vssm.weights import CheckpointError, load_checkpoint
from vssm.weights.rename import SPATIAL_MAMBA, VMAMBA, to_official

FAMILIES = {"vmamba_nano": VMAMBA, "spatial_mamba_nano": SPATIAL_MAMBA}
names = pytest.mark.parametrize("name", FAMILIES)


def _nano(name, seed=1, **options):
    torch.manual_seed(seed)
    return vssm.create_model(name, num_classes=options.pop("num_classes", 5), **options).eval()


def _official(name, **options):
    """A network, its official state dict and its logits."""
    model = _nano(name, **options)
    return model, to_official(model.state_dict(), FAMILIES[name])


def _same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- what is read ----


@names
@pytest.mark.parametrize("wrap", ["model", "state_dict", "", "ours", "module."])
def test_forms_of_a_classifier(tmp_path, name, wrap):
    source, official = _official(name)
    content = {
        "model": {"model": official, "epoch": 3, "optimizer": {"state": {}}},
        "state_dict": {"state_dict": official},
        "": official,
        "ours": {"model": source.state_dict()},
        "module.": {f"module.{k}": v for k, v in official.items()},
    }[wrap]
    torch.save(content, tmp_path / "file.pth")
    model = _nano(name, seed=2)
    assert not _same(model, source)
    report = load_checkpoint(model, tmp_path / "file.pth")
    assert _same(model, source)
    assert report.loaded == len(source.state_dict()) and not report.unused and not report.initialised
    assert f"{report.loaded} tensors" in str(report)


@names
def test_safetensors(tmp_path, name):
    source, official = _official(name)
    for file in ("file.safetensors", "file.bin"):
        save_file({k: v.contiguous() for k, v in official.items()}, tmp_path / file)
        model = _nano(name, seed=2)
        load_checkpoint(model, tmp_path / file)
        assert _same(model, source)


def test_averaged_weights_only_on_demand(tmp_path):
    raw, official = _official("vmamba_nano", seed=1)
    averaged, official_ema = _official("vmamba_nano", seed=3)
    torch.save({"model": official, "model_ema": official_ema}, tmp_path / "both.pth")
    torch.save({"model": official}, tmp_path / "raw.pth")
    model = _nano("vmamba_nano", seed=2)
    assert load_checkpoint(model, tmp_path / "both.pth").entry == "model"
    assert _same(model, raw)
    assert load_checkpoint(model, tmp_path / "both.pth", ema=True).entry == "model_ema"
    assert _same(model, averaged)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_checkpoint(model, tmp_path / "raw.pth", ema=True)


@names
def test_a_classifier_into_a_feature_extractor(tmp_path, name):
    source, official = _official(name)
    torch.save({"model": official}, tmp_path / "file.pth")
    x = torch.randn(2, 3, 40, 32)
    want = source.forward_intermediates(x, intermediates_only=True)
    for feature_cls in ("getter", "list", "fx"):
        backbone = timm.create_model(name, features_only=True, feature_cls=feature_cls).eval()
        report = load_checkpoint(backbone, tmp_path / "file.pth")
        found = backbone(x)
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a if feature_cls == "getter" else a.permute(0, 3, 1, 2), b)
        assert {"head.fc.weight", "head.fc.bias"} <= set(report.unused)
    shortened = timm.create_model(name, features_only=True, out_indices=(0, 1)).eval()
    report = load_checkpoint(shortened, tmp_path / "file.pth")
    assert any(n.startswith("stages.2.") for n in report.unused)
    torch.testing.assert_close(shortened(x), want[:2])


@names
def test_output_norms_missing_from_a_classifier_are_reported(tmp_path, name):
    _, official = _official(name)
    torch.save({"model": official}, tmp_path / "file.pth")
    report = load_checkpoint(timm.create_model(name, features_only=True, out_norms=True), tmp_path / "file.pth")
    assert list(report.initialised) == [f"out_norms.{i}.{p}" for i in range(3) for p in ("weight", "bias")]
    assert "left at their initial values" in str(report)


@names
def test_the_backbone_of_a_detector(tmp_path, name):
    source = timm.create_model(name, features_only=True, out_norms=True).eval()
    for norm in source.model.out_norms:
        torch.nn.init.normal_(norm.weight)
    official = to_official(source.model.state_dict(), FAMILIES[name])
    assert "outnorm2.weight" in official
    content = {f"backbone.{k}": v for k, v in official.items()} | {"neck.conv.weight": torch.zeros(2)}
    torch.save({"meta": {"epoch": 12}, "state_dict": content}, tmp_path / "det.pth")
    backbone = timm.create_model(name, features_only=True, out_norms=True).eval()
    report = load_checkpoint(backbone, tmp_path / "det.pth")
    assert report.unused == ("neck.conv.weight",) and not report.initialised
    assert _same(backbone, source)


def test_position_embedding_is_resized(tmp_path):
    source = vssm.create_model("vmamba_nano", num_classes=5, pos_embed=True, img_size=32)
    torch.save(to_official(source.state_dict(), VMAMBA), tmp_path / "file.pth")
    model = vssm.create_model("vmamba_nano", num_classes=5, pos_embed=True, img_size=(48, 64))
    load_checkpoint(model, tmp_path / "file.pth")
    want = torch.nn.functional.interpolate(source.pos_embed.weight, size=(24, 32), mode="bicubic")
    torch.testing.assert_close(model.pos_embed.weight, want)


def test_configurations_beside_the_weights_do_not_matter(tmp_path, monkeypatch):
    """Official files carry a yacs node; it is skipped, without yacs and without running anything of it."""
    yacs, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")

    class CfgNode(dict):
        __module__ = "yacs.config"

        def __setstate__(self, state):
            raise AssertionError("ran code of the file")

    CfgNode.__qualname__ = "CfgNode"
    config.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", yacs)
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    node = CfgNode(MODEL=CfgNode(TYPE="vssm"))
    node.frozen = True
    source, official = _official("vmamba_nano")
    beside = {"config": node, "max_accuracy": np.float64(82.6), "history": np.arange(3)}
    torch.save({"model": official, **beside}, tmp_path / "file.pth")
    monkeypatch.undo()
    model = _nano("vmamba_nano", seed=2)
    load_checkpoint(model, tmp_path / "file.pth")
    assert _same(model, source)


# ---- the classifier ----


def test_another_number_of_classes_needs_a_reset(tmp_path):
    source, official = _official("vmamba_nano", num_classes=7)
    torch.save({"model": official}, tmp_path / "file.pth")
    model = _nano("vmamba_nano", seed=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"head.fc.weight \(7, 128\) instead of \(5, 128\)[\s\S]*head='reset'"):
        load_checkpoint(model, tmp_path / "file.pth")
    report = load_checkpoint(model, tmp_path / "file.pth", head="reset")
    assert set(report.unused) == set(report.initialised) == {"head.fc.weight", "head.fc.bias"}
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key] if key.startswith("head.") else source.state_dict()[key])
    with pytest.raises(ValueError, match="choose one of strict, reset"):
        load_checkpoint(model, tmp_path / "file.pth", head="loose")


# ---- what is refused ----


@names
def test_missing_unexpected_and_misshaped_names_are_listed_and_nothing_is_loaded(tmp_path, name):
    _, official = _official(name)
    family = FAMILIES[name]
    ours = _nano(name).state_dict()
    shape = tuple(ours["stages.1.blocks.0.mixer.D"].shape)
    ours["stages.1.blocks.0.mixer.D"] = torch.zeros(3)
    del ours["norm.bias"]
    official = to_official(ours, family) | {"layers.0.extra": torch.zeros(1)}
    torch.save({"model": official}, tmp_path / "file.pth")
    model = _nano(name, seed=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, tmp_path / "file.pth")
    text = str(caught.value)
    assert "missing, 1: norm.bias" in text
    assert "unexpected, 1: layers.0.extra" in text
    assert f"stages.1.blocks.0.mixer.D (3,) instead of {shape}" in text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_long_lists_are_cut():
    from vssm.weights.match import some

    assert some([f"n{i}" for i in range(20)]).endswith("n7, and 12 more")


@pytest.mark.parametrize("name, other", [("vmamba_nano", "spatial_mamba_nano"), ("spatial_mamba_nano", "vmamba_nano")])
def test_another_family(tmp_path, name, other):
    _, official = _official(other)
    torch.save({"model": official}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=f"holds {FAMILIES[other]} weights, the model is a {FAMILIES[name]}"):
        load_checkpoint(_nano(name), tmp_path / "file.pth")


def test_another_architecture(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="no VMamba, Spatial-Mamba or Vim weights"):
        load_checkpoint(_nano("vmamba_nano"), tmp_path / "file.pth")


class _Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def _bad_files(folder):
    good = folder / "good.pth"
    torch.save({"model": _official("vmamba_nano")[1]}, good)
    content = good.read_bytes()
    save_file(_nano("vmamba_nano").state_dict(), folder / "good.safetensors")
    tensors = (folder / "good.safetensors").read_bytes()
    return {
        "empty.pth": (b"", "is empty"),
        "page.pth": (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        "cut.pth": (content[: len(content) // 2], "truncated or no checkpoint|is refused"),
        "noise.pth": (bytes(range(256)) * 8, "is no checkpoint: it begins with"),
        "pickled.pth": (b"\x80" + bytes(range(256)) * 8, "truncated or no checkpoint|is refused"),
        "answer.pth": (b'{"message": "Not Found"}', 'is no checkpoint: it begins with b\'{"message": "Not\'; download'),
        "cut.safetensors": (tensors[: len(tensors) // 2], "not a whole safetensors file"),
        "noise.safetensors": (b"\x01" * 4000, "not a whole safetensors file"),
        "evil2.pth": (pickle.dumps({"model": _Malicious()}, protocol=2), r"reading it would run (posix|nt|os)\.mkdir"),
        "evil4.pth": (pickle.dumps({"model": _Malicious()}, protocol=4), "is refused: it is not plain weights"),
        "list.pth": (pickle.dumps([1, 2], protocol=2), "holds a list|is refused|no checkpoint"),
    }


def test_bad_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = _nano("vmamba_nano", seed=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for file, (content, message) in _bad_files(tmp_path).items():
        (tmp_path / file).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(model, tmp_path / file)
    assert not (tmp_path / "owned").exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_malicious_object_in_a_torch_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _official("vmamba_nano")[1], "config": _Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="is refused"):
        load_checkpoint(_nano("vmamba_nano"), tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_no_file_a_folder_no_tensors_and_too_much(tmp_path):
    model = _nano("vmamba_nano")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_checkpoint(model, tmp_path / "none.pth")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_checkpoint(model, tmp_path)
    torch.save({"epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="holds no tensors; it holds epoch"):
        load_checkpoint(model, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="more than the 10 allowed"):
        load_checkpoint(model, tmp_path / "file.pth", max_bytes=10)


# ---- convert ----


@names
def test_convert(tmp_path, name):
    source, official = _official(name)
    torch.save({"model": official}, tmp_path / "official.pth")
    report = vssm.convert(tmp_path / "official.pth", tmp_path / "ours.safetensors")
    assert report.loaded == len(official)
    model = _nano(name, seed=2)
    load_checkpoint(model, tmp_path / "ours.safetensors")
    assert _same(model, source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["official.pth", "ours.safetensors"]


def test_convert_refuses(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="no VMamba, Spatial-Mamba or Vim weights"):
        vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"ends in .safetensors"):
        vssm.convert(tmp_path / "file.pth", tmp_path / "out.pth")
    with pytest.raises(CheckpointError, match="there is no folder"):
        vssm.convert(tmp_path / "file.pth", tmp_path / "missing" / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file.pth"]
