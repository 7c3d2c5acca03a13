"""Accuracy, counts and speed by image size."""

from pathlib import Path

import pytest
import torch

import vssm
from vssm.report.resolution import Asked, as_markdown, study
from vssm.settings import DataSettings

DATA = Path(__file__).parents[1] / "data" / "run_of_0.1"


@pytest.fixture
def folder():
    return DataSettings("imagefolder", str(DATA / "images"))


def test_figures_are_those_of_an_evaluation_at_each_size(folder):
    predictor = vssm.load(DATA / "run")
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    records = list(study({"a": predictor, "b": predictor}, folder, Asked([32, 64], linear=True, seconds=0)))
    assert [(r["model"], r["size"], r["batch"]) for r in records] == [
        ("a", 32, 64),
        ("b", 32, 64),
        ("a", 64, 16),
        ("b", 64, 16),
    ]
    for record in records:
        other = predictor.at_size(record["size"])
        assert record["top1"] == other.evaluate(folder).quality.top1
        assert record["macs"] == vssm.complexity(predictor.model, record["size"]).macs
        assert 0 <= record["top1_linear"] <= 1 and record["images_per_second"] is None
    assert all(torch.equal(before[name], value) for name, value in predictor.model.state_dict().items())


def test_the_tuned_layer_is_what_is_evaluated(folder):
    predictor = vssm.load(DATA / "run")
    with torch.no_grad():
        predictor.model.get_classifier().weight.zero_()  # chance, before it is tuned
        predictor.model.get_classifier().bias.zero_()
    (record,) = study({"a": predictor}, folder, Asked([32], linear=True, seconds=0))
    assert record["top1"] == pytest.approx(1 / 3) and record["top1_linear"] == 1.0


def test_speeds(folder):
    predictor = vssm.load(DATA / "run")
    asked = Asked([32], batch_size=2, seconds=1e-3, train=True, precision="bf16-mixed")
    first, second = study({"a": predictor, "b": predictor}, folder, asked)
    assert first["ratio"] == 1.0 and second["ratio"] > 0
    assert min(first["images_per_second"], second["train_images_per_second"]) > 0
    text = as_markdown([first, second], "here.")
    assert text.splitlines()[0].startswith("| model | size | M params | G macs | top-1, % | images/s | x first | train")
    assert text.endswith("\n\nhere.\n")


def test_what_does_not_fit_is_one_error(folder, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vssm.report.resolution.evaluate", full)
    with pytest.raises(ValueError, match=r"a at 64x64 does not fit .* with 64 images at a time; .* than 64"):
        list(study({"a": vssm.load(DATA / "run")}, folder, Asked([64], seconds=0)))
