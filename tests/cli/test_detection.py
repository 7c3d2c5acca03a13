"""Detection from the command line: one tiny training on generated shapes, and what follows it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from vssm.data.shapes import CLASSES, write_shapes
from vssm_cli import fit, predict, validate
from vssm_cli.parsing import UsageError

SMALL = (
    "{fpn_channels: 16, box_channels: 16, mask_channels: 8, rpn_samples: 16, samples: 16, proposals: 20, kept: 10, "
    "score: 0.0}"
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    root.mkdir()
    write_shapes(root, 6, 4, (64, 64))
    return root


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    code = fit.main(
        ["--config", "shapes_detection", "--data.root", str(shapes), "--image-size", "64", "--batch-size", "2",
         "--epochs", "1", "--accelerator", "cpu", "--model.network_args", SMALL, "--out", str(out)]
    )  # fmt: skip
    assert code == 0
    return out


def test_a_training_writes_its_figures_and_a_report(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {"val_box_ap", "val_mask_ap50"} <= rows[-1].keys() and 0 <= float(rows[-1]["val_box_ap"]) <= 1
    page = (run / "report.html").read_text()
    assert "box AP" in page and page.count('class="pair"') == 4  # the validation images beside the truth


def test_validate_per_class_and_results_that_go_on(run, tmp_path, capsys):
    file, partial = tmp_path / "found.json", tmp_path / "found.json.partial"
    argv = ["--checkpoint", str(run), "--accelerator", "cpu", "--json"]
    assert validate.main([*argv, "--results", str(file)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == 4 and set(printed["classes"]) == set(CLASSES)
    assert printed["classes"]["disc"]["objects"] >= 0 and "box_ap" in printed
    rows = json.loads(file.read_text())
    assert rows and set(rows[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert not partial.exists()

    # Interrupted after two images, in the middle of a line: the third is found again, to the digit.
    about = {}
    from vssm.inference import results

    def keep(self, file, about_, write, first=results.StoredResults.__init__):
        about.update(about_)
        first(self, file, about_, write)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.StoredResults, "__init__", keep)
        assert validate.main([*argv, "--results", str(file)]) == 0
    capsys.readouterr()
    of = [[row for row in rows if row["image_id"] == image] for image in (1, 2, 3, 4)]
    lines = [json.dumps(about), *(json.dumps({"index": i, "results": of[i]}) for i in range(2))]
    partial.write_text("\n".join(lines) + '\n{"index": 2, "resu')
    file.unlink()
    assert validate.main([*argv, "--results", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert json.loads(file.read_text()) == rows and not partial.exists()
    partial.write_text(json.dumps(about | {"weights": "other"}) + "\n")
    with pytest.raises(ValueError, match=r"found\.json\.partial is of an evaluation with other weights; repeat that"):
        validate.main([*argv, "--results", str(file)])


def test_predict_draws_and_lists_objects(run, shapes, tmp_path, capsys):
    images = sorted((shapes / "images" / "val").glob("*.png"))
    lines, table, pictures = tmp_path / "found.jsonl", tmp_path / "found.csv", tmp_path / "pictures"
    argv = [*map(str, images), "--checkpoint", str(run), "--device", "cpu"]
    assert predict.main([*argv, "--json-file", str(lines), "--csv", str(table), "--out", str(pictures)]) == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(one["height"], one["width"]) for one in found] == [(64, 64)] * 4
    objects = [(one["path"], row["name"], row["score"]) for one in found for row in one["objects"]]
    assert objects and {name for _, name, _ in objects} <= set(CLASSES)
    rows = list(csv.DictReader(table.open()))
    assert [(row["path"], row["class"], float(row["score"])) for row in rows if row["class"]] == objects
    assert sorted(path.name for path in pictures.iterdir()) == [path.name for path in images]
    assert np.asarray(Image.open(pictures / images[0].name)).shape == (64, 64, 3)
    capsys.readouterr()
    assert predict.main(argv) == 0  # a line per image
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_frames_of_an_animation_are_drawn(run, shapes, tmp_path, capsys):
    """The same as the pictures of which it was made, at their names with the number; a second clip of that name too."""
    images = sorted((shapes / "images" / "val").glob("*.png"))[:3]
    stills, drawn = tmp_path / "stills", tmp_path / "drawn"
    pages = [Image.open(path).convert("RGB") for path in images]
    for name in ("clip.webp", "clip.apng"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], lossless=True)
    argv = ["--checkpoint", str(run), "--device", "cpu", "--batch-size", "1"]
    assert predict.main([*map(str, images), *argv, "--out", str(stills), "--json"]) == 0
    expected = [json.loads(line)["objects"] for line in capsys.readouterr().out.splitlines()]
    clips = [str(tmp_path / name) for name in ("clip.webp", "clip.apng")]
    assert predict.main([*clips, *argv, "--every", "2", "--out", str(drawn), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["objects"] for line in lines] == [expected[0], expected[2]] * 2
    assert [line["frame"] for line in lines] == [0, 2, 0, 2]
    names = ["clip_00000.png", "clip_00002.png", "clip_00000-2.png", "clip_00002-2.png"]
    assert sorted(path.name for path in drawn.iterdir()) == sorted(names)
    for name, number in zip(names, (0, 2, 0, 2), strict=True):
        assert (drawn / name).read_bytes() == (stills / images[number].name).read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.network", "mask_rcn"], "model.network is 'mask_rcn'.*nearest: mask_rcnn"),
        (["--model.network_args", "{fpn_channel: 8}"], "network_args.fpn_channel is no argument of mask_rcnn; nearest"),
        (["--model.network_args", "{samples: 0}"], "network_args.samples is 0; expected"),
        (["--data.mixup", "0.5"], "data.mixup is 0.5; it has a meaning for task classification only"),
        (["--data", "digits"], "data.name is digits; task detection takes coco"),
        (["--optim.milestones", "3"], "optim.milestones is .3.*cosine"),
    ],
)
def test_settings_that_cannot_be(shapes, tmp_path, more, message):
    argv = ["--config", "shapes_detection", "--data.root", str(shapes), "--out", str(tmp_path / "run")]
    with pytest.raises((ValueError, UsageError), match=message):
        fit.main([*argv, *more])
    assert not (tmp_path / "run").exists()


def test_boxes_alone(shapes, tmp_path):
    """Objects without masks need a network for boxes; the message names the option."""
    root = tmp_path / "boxes"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for image in (shapes / "images" / split).iterdir():
            (root / split / image.name).write_bytes(image.read_bytes())
        coco = json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())
        for annotation in coco["annotations"]:
            del annotation["segmentation"]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))
    argv = ["--config", "shapes_detection", "--data.root", str(root), "--out", str(tmp_path / "run"), "--image-size",
            "64", "--epochs", "1", "--batch-size", "2", "--accelerator", "cpu"]  # fmt: skip
    with pytest.raises(ValueError, match=r"--model\.network_args\.masks false"):
        fit.main([*argv, "--model.network_args", SMALL])
    arguments = SMALL.replace("mask_channels: 8", "masks: false")
    assert fit.main([*argv, "--model.network_args", arguments, "--trainer.limit_train_batches", "1"]) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert rows[-1]["val_box_ap"] and not rows[-1]["val_mask_ap"]
