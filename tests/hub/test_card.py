"""The model card of a run: what it says, and what it refuses to leave out."""

from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from vssm.hub import Card, HubError, describe_run
from vssm.inference.checkpoint import read_checkpoint

FULL = {"license": "cc-by-4.0", "dataset": "squares of three colours"}


def test_what_a_run_knows(run):
    card = describe_run(run, "owner/pets", **FULL)
    text = card.text()
    assert "A vmamba_nano that sorts images of 16 x 16 pixels into 3 classes." in text
    assert "- Classes: 3: blue, green, red" in text
    assert "- Images: 24 for training, 12 for validation" in text
    assert "- Initial weights: random" in text and "peak learning rate 0.004" in text
    assert "## Results on the 12 validation images" in text and "| top-1 | 0.6667 |" in text
    assert 'timm.create_model("hf-hub:owner/pets", pretrained=True)' in text and "import vssm" in text
    assert str(run) not in text
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "timm", "image-classification")
    metrics = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"][0]["metrics"]
    assert {m["name"]: m["value"] for m in metrics} == {"loss": 1.073086, "top-1": 0.666667}


def test_the_best_validation_counts_not_the_last(run):
    lines = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(lines + "3,18,,,0.9,0.75,,\n4,24,,,0.8,0.5,,\n")
    assert describe_run(run, "owner/pets").metrics == {"loss": 0.9, "top-1": 0.75}
    assert describe_run(run, "owner/pets", metrics={"top-1": 0.7}).metrics == {"top-1": 0.7}


def test_gaps_are_refused_all_at_once(run):
    (run / "metrics.csv").unlink()
    with pytest.raises(
        HubError, match="lacks the data, the metrics, the licence; give --dataset TEXT --metric NAME=VALUE --license N"
    ):
        describe_run(run, "owner/pets").text()
    card = Card("owner/pets", "vmamba_nano", "A model.", "data", {"top-1": 0.5}, license="other")
    with pytest.raises(HubError, match="lacks the name and address of the licence; give --license-name NAME --lic"):
        card.timm()
    named = replace(card, license_name="house rules", license_link="https://example.org/rules")
    assert "license_link: https://example.org/rules" in named.text()
    assert "- Licence: house rules (https://example.org/rules)" in named.text()


def test_a_model_of_timm_needs_no_import_of_ours():
    card = Card("owner/pets", "resnet18", "A model.", "data", {"top-1": 0.5}, license="mit", ours=False)
    assert "registers" not in card.usage() and "- vssm" not in card.text()


def test_a_run_that_began_with_a_model_of_the_hub_and_validated_on_a_part(run, monkeypatch):
    stored = read_checkpoint(run)
    monkeypatch.setattr("vssm.hub.run.read_checkpoint", lambda _: stored)
    model = stored.create_model()
    monkeypatch.setattr(type(stored), "create_model", lambda self: model)
    stored.settings.model.name, stored.settings.model.pretrained = "hf-hub:owner/other", True
    stored.settings.trainer.limit_val_batches = 2
    card = describe_run(run, "owner/pets", **FULL)
    assert card.architecture == "vmamba_nano" and card.ours
    assert card.details["Initial weights"] == "published weights of hf-hub:owner/other"
    assert card.measured_on == "a part of the 12 validation images"
    stored.settings.model.name = "vmamba_tiny"
    page = "https://github.com/MzeroMiko/VMamba/blob/main/assets/performance.md"
    found = describe_run(run, "owner/pets", **FULL).details["Initial weights"]
    assert found == f"published weights of vmamba_tiny, {page}, mit"
    stored.settings.model.init_from = "catalog:vim_tiny"
    found = describe_run(run, "owner/pets", **FULL).details["Initial weights"]
    assert found == "published weights vim_tiny, https://huggingface.co/hustvl/Vim-tiny-midclstok, apache-2.0"
    stored.settings.model.init_from = "private/folder/best.ckpt"
    assert describe_run(run, "owner/pets", **FULL).details["Initial weights"] == "a checkpoint (best.ckpt)"
