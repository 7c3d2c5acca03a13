"""Adaptors around a trained model: what trains, the small file, and prediction with it on the base."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.train.interrupted import same_tensors, train
from tests.train.tiny import tiny_settings
from vssm.inference.adapted import load_adapted
from vssm.inference.checkpoint import read_checkpoint
from vssm.train.fit import build
from vssm.weights import CheckpointError
from vssm.weights.adaptors import save_adaptors
from vssm_cli.command import main


def adapting(base, **changes):
    settings = tiny_settings(**changes)
    settings.model.init_from, settings.model.head = str(base.path), "reset"
    settings.model.adaptors, settings.model.freeze = ["t", "s"], ["base"]
    settings.trainer.max_epochs, settings.trainer.limit_train_batches = 2, 3
    return settings


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    settings = tiny_settings()
    settings.trainer.max_epochs = 1
    run, _, _ = train(tmp_path_factory.mktemp("runs") / "base", settings)
    return run


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    run, rows, last = train(tmp_path_factory.mktemp("runs") / "adapted", adapting(base))
    return run, rows, last


def test_only_adaptors_norms_and_classifier_change(base, adapted):
    before = read_checkpoint(base.path).weights
    after = read_checkpoint(adapted[0].path).weights
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert moved and all("norm" in name or name.startswith(("head.", "stem.")) for name in moved), moved
    added = set(after) - set(before)
    assert any("adaptor_t" in name for name in added) and any("adaptor_s" in name for name in added)
    assert set(before) <= set(after)


def test_the_small_file_gives_the_same_answers_on_the_base(base, adapted):
    run = adapted[0]
    assert run.adaptors.stat().st_size < 0.7 * run.best.stat().st_size
    found = load_adapted(run.adaptors, base.path)
    assert (found.name, found.classes) == ("vmamba_nano", tuple("0123456789"))
    stored = read_checkpoint(run.best)
    assert found.preprocess == stored.preprocess
    same_tensors(found.model.state_dict(), stored.create_model().state_dict())
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.model(images), stored.create_model()(images))


def test_resume_is_exact(base, adapted, tmp_path):
    run, rows, last = train(tmp_path / "resumed", adapting(base, save_every_n_steps=1), kill_at=4)
    settings = adapting(base)
    settings.model.init_from = "runs/removed"  # since it began
    build(settings, weights=False)
    assert rows == adapted[1]
    same_tensors(last["state_dict"], adapted[2]["state_dict"])
    same_tensors(load_file(run.adaptors), load_file(adapted[0].adaptors))


def test_a_further_training_starts_from_the_adapted(adapted):
    settings = adapting(adapted[0])
    settings.model.head = "strict"
    same_tensors(build(settings).model.state_dict(), read_checkpoint(adapted[0].path).weights)
    for others in ([], ["t"]):
        settings.model.adaptors, settings.model.freeze = others, []
        with pytest.raises(ValueError, match=r"was trained with adaptors \(t,s\); give --model.adaptors t,s too"):
            build(settings)


def test_another_base_is_refused(base, adapted, tmp_path):
    """One value of it is another."""
    other = torch.load(base.best, weights_only=True)
    other["state_dict"]["task.model.stages.0.blocks.0.mixer.in_proj.weight"][0, 0] += 1
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="belongs to other weights of vmamba_nano"):
        load_adapted(adapted[0].adaptors, tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "resnet18"}, "unknown model 'resnet18'"),
        ({"args": {"checkpoint_path": "x.pth"}}, "model.args.checkpoint_path cannot be given"),
        ({"classes": [1, 2]}, "classes without names"),
        ({"preprocess": {"mean": 3}}, ""),
    ],
)
def test_a_description_of_someone_else(base, adapted, tmp_path, changes, reason):
    """It is checked before a model is built by it."""
    with safe_open(adapted[0].adaptors, "pt") as file:
        metadata = file.metadata()
    metadata["vssm fit"] = json.dumps(json.loads(metadata["vssm fit"]) | changes)
    save_file(load_file(adapted[0].adaptors), tmp_path / "a.safetensors", metadata)
    with pytest.raises(CheckpointError, match=rf"a\.safetensors has no description that can be read \(.*{reason}"):
        load_adapted(tmp_path / "a.safetensors", base.path)


def test_a_file_of_save_adaptors_takes_the_classes_of_the_base(base, adapted, tmp_path):
    model = read_checkpoint(adapted[0].path).create_model()
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("adaptor" in name or "norm" in name or name.startswith("head."))
    # The stem's norms trained too, so the frozen rest is that of the base.
    for name, parameter in read_checkpoint(base.path).create_model().named_parameters():
        if not torch.equal(parameter, dict(model.named_parameters())[name]):
            dict(model.named_parameters())[name].requires_grad_(True)
    save_adaptors(model, tmp_path / "plain.safetensors")
    found = load_adapted(tmp_path / "plain.safetensors", base.path)
    assert found.classes == tuple("0123456789")
    same_tensors(found.model.state_dict(), model.state_dict())


def test_the_command(base, adapted, tmp_path, capsys):
    Image.new("L", (32, 32), 40).save(tmp_path / "one.png")
    argv = ["predict", str(tmp_path / "one.png"), "--checkpoint", str(base.path), "--json"]
    assert main([*argv, "--adaptors", str(adapted[0].adaptors)]) == 0
    found = json.loads(capsys.readouterr().out)["classes"]
    assert main(["predict", str(tmp_path / "one.png"), "--checkpoint", str(adapted[0].path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == found
    assert main([*argv, "--adaptors", str(tmp_path / "one.png")]) == 1
    assert "is no file of adaptors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("adaptors", "freeze", "words"),
    [
        ([], ["base"], "model.freeze is base without adaptors to train"),
        (["t"], ["base", "stem.*"], "base leaves adaptors, norms and classifier: it stands alone"),
        (["t", "t"], [], "model.adaptors is .* expected t, s, or both once"),
        (["x"], [], "model.adaptors is .* expected t, s, or both once"),
    ],
)
def test_settings_that_cannot_be(adaptors, freeze, words):
    settings = tiny_settings()
    settings.model.adaptors, settings.model.freeze = adaptors, freeze
    with pytest.raises(ValueError, match=words):
        settings.check()


def test_a_model_without_scans():
    settings = tiny_settings()
    settings.model.name, settings.model.args, settings.model.adaptors = "test_resnet", {}, ["t"]
    settings.model.drop_path = None
    with pytest.raises(ValueError, match=r"model\.adaptors: ResNet contains no SSM"):
        build(settings)
