"""vssm.load: from a run, a checkpoint or a name to predictions and figures."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import vssm
from vssm.inference.checkpoint import read_checkpoint
from vssm.settings import DataSettings
from vssm.weights import load_checkpoint

RUN = Path(__file__).parents[1] / "data" / "run_of_0.1"


@pytest.fixture
def images(tmp_path, monkeypatch):
    shutil.copytree(RUN / "images", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def predictor():
    return vssm.load(RUN / "run")


def test_a_run_a_checkpoint_and_foreign_weights_are_the_same_network(predictor, tmp_path):
    file = RUN / "run" / "checkpoints" / "best.ckpt"
    for other in (vssm.load(str(file)), vssm.load(RUN / "run", model="vmamba_nano", device="auto").to("cpu")):
        assert (other.name, other.classes) == ("vmamba_nano", ("blue", "green", "red"))
        assert (other.preprocess, other.data) == (predictor.preprocess, predictor.data)
        for name, value in predictor.model.state_dict().items():
            assert torch.equal(other.model.state_dict()[name], value)
    network = vssm.create_model("vmamba_nano")
    torch.save(network.state_dict(), tmp_path / "elsewhere.pth")
    found = vssm.load(tmp_path / "elsewhere.pth", model="vmamba_nano")
    assert torch.equal(found.model.head.fc.weight, network.head.fc.weight)
    assert len(found.classes) == 1000 and found.data is None and not found.model.training
    load_checkpoint(network, tmp_path / "elsewhere.pth")


def test_predictions_are_those_of_the_network(predictor, images):
    found = list(predictor.predict(images / "test" / "red", top_k=2))
    assert [one.path.name for one in found] == ["0.png", "1.png", "2.png"]
    assert all(len(one.classes) == 2 for one in found)
    with torch.inference_mode():
        logits = predictor.model(predictor.preprocess(images / "test" / "red" / "1.png")[None])
    probabilities = dict(zip(predictor.classes, logits.softmax(-1)[0].tolist(), strict=True))
    assert dict(found[1].classes) == pytest.approx({name: probabilities[name] for name, _ in found[1].classes})
    named = predictor.predict([images / "test" / "red" / "2.png", str(images / "test" / "blue" / "*.png")])
    assert [one.path.parent.name for one in named] == ["red", "blue", "blue", "blue"]


def test_images_in_memory(predictor, images):
    """A PIL image is read as its file would be, and named by its place."""
    file = images / "test" / "red" / "1.png"
    (expected,) = predictor.predict(file)
    with Image.open(file) as image:
        one, two = predictor.predict([image, image.convert("RGBA")])
    assert dict(one.classes) == dict(two.classes) == pytest.approx(dict(expected.classes), abs=1e-6)
    assert one.path == file
    assert str(two.path) == "image 1"


def test_evaluation(predictor, images):
    whole = predictor.evaluate()
    assert (whole.planned, whole.quality.images, whole.unreadable) == (12, 12, ())
    assert whole.quality.top1 == pytest.approx(8 / 12) and whole.quality.confusion.sum() == 12
    by_hand = []
    for label, name in enumerate(predictor.classes):
        for path in sorted((images / "val" / name).iterdir()):
            with torch.inference_mode():
                by_hand.append(predictor.model(predictor.preprocess(path)[None]).log_softmax(-1)[0, label])
    assert whole.quality.loss == pytest.approx(-float(torch.stack(by_hand).mean()), rel=1e-5)
    assert predictor.evaluate(images).quality.loss == pytest.approx(whole.quality.loss)
    assert predictor.evaluate(DataSettings("imagefolder", str(images), batch_size=5)).quality.loss == pytest.approx(
        whole.quality.loss
    )
    seen = []
    part = predictor.evaluate(images, limit_batches=2, details=0, progress=lambda *counts: seen.append(counts))
    assert (part.planned, seen) == (8, [(4, 8), (8, 8)])
    assert not hasattr(part.quality, "confusion")
    assert predictor.evaluate(images, limit_batches=0.5, batch_size=4).planned == 4
    assert predictor.evaluate(images, "test").quality.images == 9
    full, reduced = (
        predictor.evaluate(images, limit_batches=1, precision=precision).quality.loss
        for precision in ("32-true", "bf16-mixed")
    )
    assert reduced == pytest.approx(full, rel=2e-2) and reduced != full


def test_unreadable_images_are_counted_and_too_many_refused(predictor, images):
    (images / "val" / "red" / "0.png").write_bytes(b"damaged")
    found = predictor.evaluate()
    assert found.quality.images == 11 and found.metrics()["val_unreadable"] == 1
    assert found.notes[-1].startswith(
        "1 of 12 images cannot be read and are left out, for example images/val/red/0.png"
    )
    for path in [*(images / "val" / "blue").iterdir(), *(images / "val" / "green").iterdir()]:
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"8 of 12 validation .* more than .* 0\.5 allows \(.*png: not an image"):
        predictor.evaluate()


def test_another_size(predictor):
    found = vssm.load(RUN / "run", image_size=24)
    assert found.preprocess.input_size == (3, 24, 24) and predictor.preprocess.input_size == (3, 16, 16)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        predictor.at_size(0)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/run does not exist; expected a checkpoint or a run directory"):
        vssm.load("nowhere/run")
    with pytest.raises(FileNotFoundError, match=r"weights\.pth does not exist"):
        vssm.load("weights.pth")
    with pytest.raises(ValueError, match="unknown model 'vmamba_tini'; nearest: vmamba_tiny"):
        vssm.load("vmamba_tini")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "some.pth")
    with pytest.raises(ValueError, match=r"some\.pth was not written by `vssm fit`; for other weights name the model"):
        vssm.load(tmp_path / "some.pth")
    with pytest.raises(ValueError, match="holds a vmamba_nano, not a vmamba_tiny"):
        vssm.load(RUN / "run", model="vmamba_tiny")
    with pytest.raises(ValueError, match="device 'tpu' is not available here"):
        vssm.load(RUN / "run", device="tpu")


def test_what_cannot_be_evaluated_is_named(predictor, images, tmp_path):
    with pytest.raises(ValueError, match="split is 'train'; expected 'val' or 'test'"):
        predictor.evaluate(split="train")
    with pytest.raises(FileNotFoundError, match="elsewhere does not exist"):
        predictor.evaluate(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="precision is 'bf17'; expected 32-true, bf16-mixed, 16-mixed or 64-true"):
        predictor.evaluate(precision="bf17")
    with pytest.raises(ValueError, match="precision 16-mixed needs a GPU"):
        predictor.evaluate(precision="16-mixed")
    with pytest.raises(ValueError, match=r"no validation image is left to evaluate: a limit of 0\.1 of 3 batches"):
        predictor.evaluate(limit_batches=0.1)
    (images / "val" / "red").rename(images / "val" / "purple")
    with pytest.raises(ValueError, match="has purple, which the training classes do not include"):
        predictor.evaluate()
    untrained = vssm.inference.predictor.Predictor("x", predictor.model, predictor.preprocess, predictor.classes)
    with pytest.raises(ValueError, match="x comes without images to evaluate on; name a folder"):
        untrained.evaluate()


def test_stored_settings_can_be_changed():
    stored = read_checkpoint(RUN / "run")
    settings = type(stored.settings).from_dict(stored.settings.as_dict())
    settings.data.image_size, settings.data.crop_pct = 32, 0.5
    changed = stored.changed(settings).preprocess
    assert (changed.input_size, changed.crop_pct) == ((3, 32, 32), 0.5)
    assert changed.mean == stored.preprocess.mean
