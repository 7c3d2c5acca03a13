"""From a run to the Hub and back, against a stand-in of the Hub (tests/hub/server.py)."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from huggingface_hub import constants

import vssm
from tests.hub.conftest import RUN
from vssm.hub import HubError, describe_run, push_folder, write_folder
from vssm.inference.checkpoint import read_checkpoint
from vssm_cli.command import main

FULL = ("--license", "cc-by-4.0", "--dataset", "squares of three colours")


def _same(model, run):
    """The weights and the outputs of the run's best checkpoint."""
    own, x = read_checkpoint(run).create_model(), torch.randn(2, 3, 16, 16)
    assert own.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(model.eval()(x), own(x))


def test_push_and_load(hub, run, capsys):
    assert main(["push", str(run), "owner/pets", *FULL, "--private"]) == 0
    assert f"{hub.address}/owner/pets" in capsys.readouterr().out
    assert hub.private == {"owner/pets": True} and hub.messages == ["Upload model with vssm"]
    assert set(hub.files("owner/pets")) == {"config.json", "model.safetensors", "README.md"}
    assert "squares of three colours" in hub.files("owner/pets")["README.md"].decode()
    assert not (run / "hub").exists()

    model = timm.create_model("hf-hub:owner/pets", pretrained=True)
    assert model.num_classes == 3 and model.pretrained_cfg["hf_hub_id"] == "owner/pets"
    _same(model, run)
    assert timm.create_model("hf-hub:owner/pets", pretrained=True, num_classes=7).head.fc.out_features == 7
    maps = timm.create_model("hf-hub:owner/pets", pretrained=True, features_only=True)(torch.randn(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == [8, 16]

    predictor = vssm.load("hf-hub:owner/pets")
    assert predictor.classes == ("blue", "green", "red") and predictor.preprocess.input_size == (3, 16, 16)
    assert predictor.preprocess == read_checkpoint(run).preprocess
    image = RUN.parent / "images" / "val" / "green" / "0.png"
    (found,) = predictor.predict(image)
    (expected,) = vssm.load(run).predict(image)
    assert [name for name, _ in found.classes] == [name for name, _ in expected.classes]
    assert dict(found.classes) == pytest.approx(dict(expected.classes), abs=1e-5)


def test_a_card_on_the_hub_stays_unless_it_shall_not(hub, run):
    command = ["push", str(run), "owner/pets", *FULL]
    assert main(command) == 0
    hub.repos["owner/pets"].append(hub.files("owner/pets") | {"README.md": b"edited"})
    assert main([*command, "--message", "again"]) == 0
    assert hub.files("owner/pets")["README.md"] == b"edited" and hub.messages[-1] == "again"
    assert main([*command, "--replace-card"]) == 0
    assert b"license: cc-by-4.0" in hub.files("owner/pets")["README.md"]


def test_a_dry_run_writes_the_folder_only_and_the_folder_can_be_pushed(hub, run, capsys):
    assert main(["push", str(run), "owner/pets", *FULL, "--dry-run"]) == 0
    assert hub.requests == [] and f"vssm push {run / 'hub'} owner/pets" in capsys.readouterr().out
    assert sorted(p.name for p in (run / "hub").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    _same(timm.create_model(f"local-dir:{run / 'hub'}", pretrained=True), run)
    assert main(["push", str(run), "owner/pets", *FULL, "--dry-run"]) == 1
    assert "hub exists already; choose another folder, or remove it" in capsys.readouterr().err
    card = run / "hub" / "README.md"
    card.write_text(card.read_text() + "\nEdited by hand.\n")
    assert main(["push", str(run / "hub"), "owner/pets"]) == 0
    assert b"Edited by hand." in hub.files("owner/pets")["README.md"]
    card.write_text("no metadata")
    assert main(["push", str(run / "hub"), "owner/pets"]) == 1
    assert "names no license in its first lines" in capsys.readouterr().err
    card.unlink()
    assert main(["push", str(run / "hub"), "owner/pets"]) == 1
    assert "hub lacks README.md; write it with" in capsys.readouterr().err


def test_a_folder_that_cannot_be_loaded_again_is_not_left(run, monkeypatch):
    card = describe_run(run, "owner/pets", license="mit", dataset="squares")
    create = timm.create_model
    other = create("vim_nano")
    monkeypatch.setattr(timm, "create_model", lambda name, **k: other if name[:6] == "local-" else create(name, **k))
    with pytest.raises(HubError, match="timm does not build the same network"):
        write_folder(run, run / "hub", card)
    assert not [p for p in run.iterdir() if "hub" in p.name]


def test_timms_own_upload_with_our_card(hub, run):
    model = read_checkpoint(run).create_model()
    card = describe_run(run, "owner/pets", license="cc-by-4.0", dataset="squares of three colours")
    config = {"label_names": ["b", "g", "r"]}
    timm.models.push_to_hf_hub(model, "owner/pets", model_card=card.timm(), model_config=config)
    _same(timm.create_model("hf-hub:owner/pets", pretrained=True), run)
    text = hub.files("owner/pets")["README.md"].decode()
    assert "license: cc-by-4.0" in text and "**Data:** squares of three colours" in text
    assert "**top-1 on the 12 validation images:** 0.6667" in text and "import vssm" in text
    assert vssm.load("hf-hub:owner/pets").classes == ("b", "g", "r")


def test_without_a_login(hub, run, monkeypatch, capsys):
    command = ["push", str(run), "owner/pets", *FULL]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines() == [
        "vssm: error: cannot upload to owner/pets: the Hub answers 401 (Invalid credentials in Authorization header); "
        "log in with a token that may write: `hf auth login`, or HF_TOKEN"
    ]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("vssm.hub.push.get_token", lambda: None)
    hub.requests.clear()
    assert main(command) == 1
    assert "not logged in to the Hub: run `hf auth login`" in capsys.readouterr().err and hub.requests == []


def test_a_card_that_the_hub_refuses(hub, run, capsys):
    assert main(["push", str(run), "owner/pets", "--license", "none such", "--dataset", "squares"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ('vssm: error: cannot upload to owner/pets: Invalid metadata in README.md. - "license" is unknown')
    assert hub.files("owner/pets") == {}


def test_without_a_network(hub, run, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "owner/pets", *FULL]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vssm: error: cannot upload to owner/pets: ") and "check the network and HF_ENDPOINT" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(run), "owner/pets", *FULL]) == 1
    assert "HF_HUB_OFFLINE is set, so nothing can be sent" in capsys.readouterr().err
    assert main(["push", str(run), "owner/pets", *FULL, "--dry-run"]) == 0


@pytest.mark.parametrize("repo", ["pets", "a/b/c", "owner/--x", "owner/pe ts"])
def test_names_that_the_hub_does_not_allow(run, repo, capsys):
    assert main(["push", str(run), repo, *FULL]) == 1
    assert "is no name of a repository on the Hub" in capsys.readouterr().err


def test_runs_that_timm_cannot_load(run, monkeypatch):
    stored = read_checkpoint(run)
    monkeypatch.setattr("vssm.hub.run.read_checkpoint", lambda _: stored)
    stored.settings.model.adaptors = ["t"]
    with pytest.raises(HubError, match=r"trained adaptors.*vssm\.load_adaptors takes it"):
        describe_run(run, "owner/pets")
    stored.settings.task = "segmentation"
    with pytest.raises(HubError, match="is a run of segmentation"):
        describe_run(run, "owner/pets")


def test_a_repository_that_is_not_there(hub, capsys, tmp_path):
    (tmp_path / "photo.png").write_bytes((RUN.parent / "images/val/green/0.png").read_bytes())
    assert main(["predict", str(tmp_path / "photo.png"), "--model", "hf-hub:owner/none"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot load hf-hub:owner/none" in line and "check the name, the login" in line


def test_from_the_cache(hub, run, monkeypatch):
    assert main(["push", str(run), "owner/pets", *FULL]) == 0
    assert vssm.load("hf-hub:owner/pets").classes == ("blue", "green", "red")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert vssm.load("hf-hub:owner/pets").classes == ("blue", "green", "red") and hub.requests == []


def test_in_a_process_of_its_own(hub, run, tmp_path):
    """The environment variables of huggingface_hub alone, as a user sets them."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": os.environ["HF_TOKEN"],
    }
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    code = f"""
import json, sys
from vssm_cli.command import main
assert main({["push", str(run), "owner/pets", *FULL]}) == 0
import vssm
print(json.dumps(vssm.load("hf-hub:owner/pets").classes))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["blue", "green", "red"]


def test_a_folder_is_needed(hub, tmp_path):
    with pytest.raises(HubError, match=r"lacks config.json, model.safetensors, README.md"):
        push_folder(tmp_path, "owner/pets")
