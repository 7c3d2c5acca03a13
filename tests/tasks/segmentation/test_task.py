"""Segmentation from folders to pictures: trained, resumed, evaluated and drawn with a nano network."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vssm
from tests.train.interrupted import same_tensors, train
from vssm.data.image import UnreadableImage
from vssm.data.keep_ratio import KeepRatio
from vssm.data.padded import PaddedImages
from vssm.data.shapes import write_shapes
from vssm.settings import DataSettings, ModelSettings, OptimSettings, Settings, TrainerSettings
from vssm.tasks import TASKS
from vssm.tasks.segmentation.inference import LabelMap
from vssm.train.fit import build, fit, start_run

TASK = TASKS["segmentation"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=8, val=3, size=(48, 64))
    return root


def settings(root, **changes):
    found = Settings(
        task="segmentation",
        model=ModelSettings(
            "vmamba_nano", drop_path=0.2, args={"dims": [8, 16], "depths": [1, 1]},
            network_args={"channels": 8, "aux_channels": 4},
        ),
        data=DataSettings("masks", root=str(root), image_size=40, crop_size=40, batch_size=4),
        optim=OptimSettings(
            3e-3, schedule="poly", min_lr=0.0, weight_decay=0.01, warmup_steps=1, ema_decay=0, label_smoothing=0.0,
            no_decay=["*.blocks.*norm*"],
        ),
        trainer=TrainerSettings(max_epochs=2, accelerator="cpu", gradient_clip_val=None, log_every_n_steps=1),
    )  # fmt: skip
    for name, value in changes.items():
        section, _, key = name.partition("__")
        setattr(getattr(found, section), key, value)
    return found


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "whole", settings(shapes))


@pytest.mark.parametrize("kill_at", [2, 3], ids=["between epochs", "within an epoch"])
def test_resume_is_exact(shapes, trained, tmp_path, kill_at):
    chosen = settings(shapes)
    chosen.save_every_n_steps = 1
    _, rows, last = train(tmp_path / "run", chosen, kill_at)
    assert rows == trained[1] and len(rows) == 6
    assert rows[-1]["val_miou"] and set(rows[-1]) >= {"val_aacc", "val_macc"}
    same_tensors(last["state_dict"], trained[2]["state_dict"])


def test_an_evaluation_gives_what_the_training_logged(trained, shapes):
    run, rows, _ = trained
    predictor = vssm.load(run.last)
    found = predictor.evaluate(details=2)
    logged = {name: float(rows[-1][name]) for name in TASK.columns}
    assert {name: found.metrics()[name] for name in TASK.columns} == pytest.approx(logged, abs=1e-6)
    quality = found.quality
    assert (quality.images, quality.not_finite) == (3, 0)
    masks = [np.asarray(Image.open(path)) for path in sorted((shapes / "masks" / "val").iterdir())]
    assert quality.pixels.tolist() == np.bincount(np.concatenate([m.ravel() for m in masks]), minlength=6).tolist()
    examples = TASK.examples(quality, found.splits, predictor.classes)
    assert [one.file for one in examples] == ["000000.png", "000001.png"]
    assert all(one.found.width == one.truth.width >= 480 for one in examples)


def test_scales_mirrors_and_windows_of_an_evaluation(trained):
    """Other settings reach the network; each of them gives other scores than one pass."""
    predictor = vssm.load(trained[0].last)
    plain = predictor.evaluate(details=0).quality.confusion
    for changes in ({"test_scales": [0.5, 1.0, 1.75], "test_flip": True}, {"test_window": 24, "test_stride": 16}):
        infer = TASK.inference(predictor.model, replace(predictor.data, **changes))
        assert (len(infer.scales), infer.flip, infer.window, infer.stride) == (
            len(changes.get("test_scales", [1])), "test_flip" in changes, changes.get("test_window"),
            changes.get("test_stride"),
        )  # fmt: skip
        found = predictor.evaluate(replace(predictor.data, **changes), details=0).quality.confusion
        assert found.sum() == plain.sum() and not torch.equal(found, plain)


def test_an_interrupted_evaluation_goes_on(trained, shapes, tmp_path, monkeypatch):
    """Ctrl-C in the second of three images: the third command takes the first from the file, and ends with the same."""
    root = tmp_path / "shapes"
    shutil.copytree(shapes, root)
    predictor = vssm.load(trained[0].last)
    data = replace(predictor.data, root=str(root), batch_size=1)
    whole = predictor.evaluate(data, results=tmp_path / "whole.json", details=0).quality
    plain = json.loads((tmp_path / "whole.json").read_text())
    assert plain == {
        "images": 3, "not_finite": 0, "classes": list(predictor.classes), "confusion": whole.confusion.tolist(),
    }  # fmt: skip
    calls, forward = [], predictor.model.forward

    def interrupted(images):
        calls.append(images)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(images)

    monkeypatch.setattr(predictor.model, "forward", interrupted)
    file, kept = tmp_path / "found.json", tmp_path / "found.json.partial"
    with pytest.raises(KeyboardInterrupt):
        predictor.evaluate(data, results=file, details=0)
    assert len(kept.read_text().splitlines()) == 2 and not file.exists()
    with kept.open("a") as stream:
        stream.write('{"index": 1, "res')  # as a killed process leaves it
    quality = predictor.evaluate(data, results=file, details=0).quality
    assert len(calls) == 2 + 2  # the first image is not labelled again
    assert torch.equal(quality.confusion, whole.confusion) and quality.logged() == whole.logged()
    assert file.read_text() == (tmp_path / "whole.json").read_text() and not kept.exists()

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        predictor.evaluate(data, results=file, details=0)
    others = {"settings": {"test_flip": True}, "preprocessing": {}, "masks": {}, "weights": {}}
    for what, changes in others.items():
        chosen, changed = predictor, replace(data, **changes)
        if what == "preprocessing":
            chosen = replace(predictor, preprocess=replace(predictor.preprocess, short_side=32))
        if what == "masks":
            mask = root / "masks" / "val" / "000001.png"
            Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
        if what == "weights":
            next(predictor.model.parameters()).data.add_(1)
        with pytest.raises(ValueError, match=rf"found\.json\.partial is of an evaluation with other .*{what}"):
            chosen.evaluate(changed, results=file, details=0)
    kept.write_text(kept.read_text().replace("confusion", "confused", 1)[:-5] + "\n")
    with pytest.raises(ValueError, match=r"found\.json\.partial is damaged"):
        predictor.evaluate(data, results=file, details=0)


def test_predictions_have_the_size_of_the_file(trained, shapes, tmp_path):
    Image.open(shapes / "images" / "val" / "000000.png").resize((90, 31)).save(tmp_path / "wide.png")
    Image.open(shapes / "images" / "val" / "000001.png").convert("L").save(tmp_path / "grey.png")
    predictor = vssm.load(trained[0].path)
    files = [shapes / "images" / "val" / "000002.png", tmp_path / "wide.png", tmp_path / "grey.png"]
    found = list(predictor.predict(files))
    for one in found:
        with Image.open(one.path) as image:
            assert one.error is None and one.result.labels.shape == (image.height, image.width)
            plain = TASK.plain(one.result, predictor.classes)
            assert plain == json.loads(json.dumps(plain))
            assert (plain["height"], plain["width"]) == (image.height, image.width)
            assert sum(entry["share"] for entry in plain["classes"]) == pytest.approx(1)
            assert all(entry["name"] in predictor.classes for entry in plain["classes"])
            assert TASK.draw(image, one.result, predictor.classes).width % image.width == 0
    with torch.inference_mode():
        (alone,) = predictor.task.inference(predictor.model)(
            PaddedImages.of([predictor.preprocess(files[1])], [(31, 90)], multiple=1)
        )
    assert torch.equal(alone.labels, found[1].result.labels)


def test_words_for_a_result():
    labels = np.repeat(np.arange(7, dtype=np.uint8), [60, 20, 10, 4, 3, 2, 1]).reshape(10, 10)
    names = tuple("abcdefg")
    assert TASK.summary(LabelMap(torch.from_numpy(labels)), names) == (
        "a 60.0%, b 20.0%, c 10.0%, d 4.0%, e 3.0% and 2 more"
    )
    found = [LabelMap(torch.from_numpy(labels)), LabelMap(torch.from_numpy(labels), finite=False)]
    first, second = TASK.results(found, names, 5)
    assert torch.equal(first.labels, found[0].labels) and second is None


def test_preprocessing():
    data = DataSettings("masks")
    assert TASK.preprocess(data, "vmamba_nano") == KeepRatio(512, 2048, multiple=1)
    assert TASK.preprocess(replace(data, image_size=64), "vmamba_nano") == KeepRatio(64, 256, multiple=1)
    assert TASK.preprocess(replace(data, image_size=64, max_side=100), "vmamba_nano").long_side == 100


def test_weights_to_start_from(trained, shapes, tmp_path):
    """A classifier's go into the backbone, those of a segmentation into all, or with `reset` into the backbone."""
    notes = build(settings(shapes)).splits.notes
    assert any("random weights" in note for note in notes)
    torch.manual_seed(5)
    classifier = vssm.create_model("vmamba_nano", dims=[8, 16], depths=[1, 1])
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    model = build(settings(shapes, model__init_from=str(tmp_path / "classifier.pth"))).model
    stem = "stem.conv1.weight"
    assert torch.equal(model.state_dict()[f"backbone.model.{stem}"], classifier.state_dict()[stem])

    run, _, last = trained
    weights = last["state_dict"]
    whole = build(settings(shapes, model__init_from=str(run.last)))
    assert not any("random" in note for note in whole.splits.notes)
    assert all(torch.equal(value, weights[f"task.model.{name}"]) for name, value in whole.model.state_dict().items())
    reset = build(settings(shapes, model__init_from=str(run.last), model__head="reset")).model.state_dict()
    name = f"backbone.model.{stem}"
    assert torch.equal(reset[name], weights[f"task.model.{name}"])
    assert not torch.equal(reset["head.classifier.weight"], weights["task.model.head.classifier.weight"])


def test_a_share_is_held_out_where_nothing_validates(shapes, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "train").symlink_to(shapes / "images" / "train")
    (tmp_path / "masks" / "train").symlink_to(shapes / "masks" / "train")
    (tmp_path / "classes.txt").write_text((shapes / "classes.txt").read_text())
    splits = build(settings(tmp_path, data__val_share=0.25)).splits
    assert (len(splits.train), len(splits.val)) == (6, 2) and "25% of the images validate" in splits.notes[0]
    again = TASK.load_splits(settings(tmp_path, data__val_share=0.25).data, splits.preprocess, classes=splits.classes)
    assert again.train is None and [again.val.path(k) for k in (0, 1)] == [splits.val.path(k) for k in (0, 1)]


def written(root, masks, classes="a\nb\n", size=(20, 30)):
    """One image per mask, for training and validation."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number, mask in enumerate(masks):
            pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    (root / "classes.txt").write_text(classes)
    return root


def test_bad_masks_are_left_out_and_counted(tmp_path):
    """Of another size, or with a value that is no class: named with the file, never silently dropped."""
    good = np.tile(np.array([0, 1], np.uint8), (20, 15))
    bad = np.full((20, 30), 7, np.uint8)
    root = written(tmp_path / "data", [good, good, good, bad, good[:, :29]])
    chosen = settings(root, trainer__max_epochs=1, data__batch_size=2, data__max_unreadable=0.5)
    chosen.out = str(tmp_path / "run")
    run = start_run(chosen)
    experiment = build(chosen)
    with pytest.warns(UserWarning, match="Images that cannot be read are left out"):
        metrics = fit(experiment, run)
    run.close()
    assert metrics["val_images"] == 3
    text = run.unreadable.read_text()
    assert "none of the 2 classes (a, b): 7 (600 pixels)" in text and "masks/val/3.png" in text
    assert "30 x 20 pixels, but 29 x 20" in text and "val/4.png" in text
    found = vssm.load(run.path).evaluate()
    assert found.metrics()["val_unreadable"] == 2 and "2 of 5 images cannot be read" in found.notes[-1]


def test_masks_that_are_all_ignored(tmp_path):
    """They train with the loss 0, and an evaluation of nothing else is refused."""
    root = written(tmp_path / "data", [np.full((20, 30), 255, np.uint8)] * 2)
    chosen = settings(root, trainer__max_epochs=1, data__batch_size=2)
    experiment = build(chosen)
    batch = TASK.collate([experiment.splits.train[k] for k in (0, 1)])
    loss, _ = experiment.module.task.training_step(batch.images, batch.targets)
    assert loss.item() == 0 and batch.targets.unique().tolist() == [255]
    chosen.out = str(tmp_path / "run")
    run = start_run(chosen)
    fit(experiment, run)
    run.close()
    with pytest.raises(ValueError, match="2 validation images: all pixels are ignored"):
        vssm.load(run.last).evaluate()


def test_reduce_zero_label(tmp_path):
    mask = np.tile(np.array([0, 1, 2], np.uint8), (20, 10))
    root = written(tmp_path, [mask])
    splits = build(settings(root, data__reduce_zero_label=True, data__batch_size=1)).splits
    _, labels = splits.val[0]
    assert splits.classes == ("a", "b") and np.array_equal(labels, np.tile([255, 0, 1], (20, 10)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__root": None}, "no images given: --data.root FOLDER"),
        ({"model__network": "upernett"}, "model.network is 'upernett'; expected upernet; nearest: upernet"),
        ({"model__network_args": {"chanels": 3}}, "network_args.chanels is no argument of upernet; nearest: channels"),
        ({"model__network_args": {"channels": 0}}, "channels must be at least 1, got 0"),
        ({"model__name": "vmamba_nanno"}, "unknown model 'vmamba_nanno'"),
        ({"data__test_stride": 8}, "a stride of 8 has a meaning with a window only"),
        ({"data__test_window": 8, "data__test_stride": 9}, "stride is 9 with a window of 8"),
        ({"data__mixup": 0.2}, r"data.mixup is 0\.2; it has a meaning for task classification only"),
        ({"data__resize_range": [2.0, 0.5]}, "data.resize_range is"),
    ],
)
def test_settings_that_are_refused(shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        build(settings(shapes, **changes))


def test_data_that_are_refused(shapes, trained, tmp_path):
    with pytest.raises(ValueError, match="holds no training data that are known here"):
        build(settings(tmp_path))
    predictor = vssm.load(trained[0].last)
    with pytest.raises(FileNotFoundError, match="has no test split"):
        predictor.evaluate(split="test")
    other = written(tmp_path / "other", [np.zeros((20, 30), np.uint8)], "background\nring\n")
    with pytest.raises(
        ValueError, match=r"trained on 6 classes, .* are of 2 \(disc, square, triangle, .*one side only"
    ):
        predictor.evaluate(other)
    turned = written(
        tmp_path / "turned", [np.zeros((20, 30), np.uint8)], "disc\nbackground\nsquare\ntriangle\nstar\nring\n"
    )
    with pytest.raises(ValueError, match="in another order"):
        predictor.evaluate(turned)
    with pytest.raises(UnreadableImage, match="values that are none of the 2 classes"):
        written(tmp_path / "wrong", [np.full((20, 30), 9, np.uint8)])
        build(settings(tmp_path / "wrong", data__batch_size=1)).splits.train[0]


def test_a_network_that_takes_no_such_image_is_refused():
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            raise RuntimeError("the size of tensor a must match")

    with pytest.raises(ValueError, match="broken cannot take images of 3x64x96: the size of tensor a must match"):
        TASK.check_model(Broken(), "broken", (3, 512, 2048))


def test_metrics_of_splits():
    metrics = TASK.metrics(SimpleNamespace(classes=("a", "b"), val=range(4)), 2)
    assert metrics.kept == {0, 2}
