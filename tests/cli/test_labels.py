import json

import numpy as np
import pytest
from PIL import Image

from vssm.data.coco import CocoInstances
from vssm.data.layouts import find_layout
from vssm_cli.command import main


@pytest.fixture
def yolo(tmp_path):
    """Ten images of 96 x 64 with a bright square as large as its box, and a triangle."""
    source = tmp_path / "source"
    generator = np.random.default_rng(0)
    for number in range(10):
        x, y = (int(value) for value in generator.integers(0, (80, 48)))
        pixels = np.zeros((64, 96, 3), np.uint8)
        pixels[y : y + 16, x : x + 16] = 255
        image = source / "images" / "deep" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(image)
        label = source / "labels" / "deep" / f"{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        box = f"1 {(x + 8) / 96} {(y + 8) / 64} {16 / 96} {16 / 64}\n"
        label.write_text(box + "0 0.1 0.1 0.9 0.1 0.5 0.9\n")
    (source / "classes.txt").write_text("triangle\nsquare\n")
    return source


def load(root, split):
    source = find_layout(root, "detection").splits[split]
    return CocoInstances(source.annotations, source.images, lambda image, objects: (image, objects))


def test_yolo(yolo, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["labels", str(yolo), str(out), "--val-share", "0.3", "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "note: 3 of 10 images validate (drawn with seed 1)",
        "train: 7 images, 14 objects",
        "val: 3 images, 6 objects",
        "classes: 2 (triangle, square)",
        "everything was carried over",
    ):
        assert line in shown
    train, val = load(out, "train"), load(out, "val")
    assert train.classes == ("triangle", "square")
    assert len(train.notes) == 1 and "annotations with a box but no segmentation: 7" in train.notes[0]
    assert not set(train.names) & set(val.names) and train.names[0].startswith("deep/")
    for dataset in (train, val):
        for image, objects in dataset:
            square, triangle = objects.labels.tolist().index(1), objects.labels.tolist().index(0)
            x0, y0, x1, y1 = (round(value) for value in objects.boxes[square])
            pixels = np.asarray(image)[..., 0]
            assert pixels[y0:y1, x0:x1].min() == 255 and pixels.sum() == 255 * 256
            assert objects.areas[triangle] == objects.mask(triangle).sum() > 1500
    entry = json.loads((out / "annotations" / "instances_train.json").read_text())["annotations"]
    assert [one["id"] for one in entry] == list(range(1, 15))
    first = out / "train" / train.names[0]
    assert first.samefile(yolo / "images" / train.names[0]), "linked"


def test_tiles(yolo, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [
        "labels",
        str(yolo),
        str(out),
        "--val-share",
        "0",
        "--tile",
        "48",
        "--overlap",
        "16",
        "--min-visible",
        "0.9",
    ]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "train: 60 images" in shown and "val:" not in shown
    assert "objects with less than 90% of their area in every tile, left out: 10" in shown
    train = load(out, "train")
    assert len(train) == 60 and train.notes == ("instances_train.json: classes without objects: 1 of 2 (triangle)",)
    assert {name.rpartition("/")[2].partition("_")[2] for name in train.names} == {
        f"{x}_{y}.png" for x in (0, 32, 48) for y in (0, 16)
    }
    seen = 0
    for image, objects in train:
        assert image.size == (48, 48)
        for x0, y0, x1, y1 in objects.boxes.round().astype(int).tolist():
            assert np.asarray(image)[y0:y1, x0:x1].min() == 255 and (x1 - x0) * (y1 - y0) >= 0.9 * 256
            seen += 1
    assert seen >= 10


def test_copies(yolo, tmp_path, capsys):
    assert main(["labels", str(yolo), str(tmp_path / "out"), "--copy", "--val-share", "0"]) == 0
    name = load(tmp_path / "out", "train").names[0]
    assert not (tmp_path / "out" / "train" / name).samefile(yolo / "images" / name)
    assert (tmp_path / "out" / "train" / name).read_bytes() == (yolo / "images" / name).read_bytes()


def test_a_single_class(yolo, tmp_path, capsys):
    assert main(["labels", str(yolo), str(tmp_path / "out"), "--single-class", "shape"]) == 0
    shown = capsys.readouterr().out
    assert "note: 2 classes became shape: triangle, square" in shown and "classes: 1 (shape)" in shown
    train = load(tmp_path / "out", "train")
    assert train.classes == ("shape",) and train.class_counts() == [16]


def test_what_is_lost_is_printed(yolo, tmp_path, capsys):
    (yolo / "images" / "deep" / "3.png").write_bytes(b"")
    assert main(["labels", str(yolo), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "not carried over, or worth a look:\n  images that cannot be read, left out: 1 (first: " in shown
    assert "label files of no image: 1" in shown


def test_names_that_collide(tmp_path, capsys):
    for folder in ("one", "two"):
        (tmp_path / "source" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "source" / folder / "a.png")
        (tmp_path / "source" / folder / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "source" / "data.yaml").write_text("names: [dot]\ntrain: [one, two]\n")
    assert main(["labels", str(tmp_path / "source"), str(tmp_path / "out"), "--val-share", "0"]) == 0
    assert load(tmp_path / "out", "train").names == ("a.png", "a_2.png")


def test_errors(yolo, tmp_path, capsys):
    assert main(["labels", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "none does not exist; expected a folder with images and their annotations" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["labels", str(tmp_path / "empty"), str(tmp_path / "out")]) == 1
    assert "has no annotations that are known here; looked for data.yaml" in capsys.readouterr().err
    (yolo / "more.xml").write_text("<annotation/>")
    assert main(["labels", str(yolo), str(tmp_path / "out")]) == 1
    assert "annotations in more than one format: yolo, voc; --format" in capsys.readouterr().err
    assert main(["labels", str(yolo), str(tmp_path)]) == 1
    assert "is not empty; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--val-share", "1"), "--val-share must be 0 or more and less than 1, not 1"),
        (("--tile", "8"), "--tile must be at least 32, not 8"),
        (("--overlap", "8"), "--overlap needs --tile SIZE"),
        (("--tile", "64", "--overlap", "40"), "--overlap must be from 0 to half of --tile, not 40"),
        (("--min-visible", "0"), "--min-visible must be more than 0"),
        (("--seed", "-1"), "--seed must be at least 0"),
    ],
)
def test_bad_use(tmp_path, capsys, arguments, message):
    assert main(["labels", str(tmp_path), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
