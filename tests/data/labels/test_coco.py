"""COCO json as a source of `vssm labels`: what stays as it is, what is cut, what is counted as lost."""

import json

import numpy as np
import pytest
from PIL import Image

from vssm.data import rle
from vssm.data.coco import CocoInstances
from vssm.data.labels import read_labels
from vssm.data.labels.tiles import Tiling
from vssm.data.labels.write import write_coco
from vssm.data.layouts import find_layout
from vssm.data.shapes import write_shapes
from vssm_cli.command import main

MASK = np.zeros((60, 80), bool)
MASK[10:30, 35:45] = True
CROWD = np.zeros((60, 80), bool)
CROWD[40:60, 30:80] = True


@pytest.fixture
def source(tmp_path):
    """One json of another name: an image with a polygon, a mask, a crowd and a box alone; a second without objects."""
    folder = tmp_path / "source"
    (folder / "images" / "deep").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(folder / "images/deep/a.png")
    Image.new("RGB", (20, 20)).save(folder / "images" / "b.png")
    polygon = [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]
    crowd = {"size": [60, 80], "counts": [int(n) for n in runs(CROWD)]}
    data = {
        "images": [
            {"id": 7, "file_name": "deep/a.png", "width": 80, "height": 60, "license": 3},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 20},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 20, "bbox": [2, 3, 10, 10], "area": 99, "segmentation": polygon},
            {"id": 6, "image_id": 7, "category_id": 4, "bbox": [35, 10, 10, 20], "segmentation": rle.encode(MASK)},
            {"id": 7, "image_id": 7, "category_id": 4, "bbox": [30, 40, 50, 20], "iscrowd": 1, "segmentation": crowd},
            {"id": 8, "image_id": 7, "category_id": 4, "bbox": [60, 5, 10, 10], "area": 100, "keypoints": [1, 2, 2]},
            {"id": 9, "image_id": 7, "category_id": 4, "bbox": [90, 5, 10, 10], "area": 100},
        ],
        "categories": [{"id": 20, "name": "dog"}, {"id": 4, "name": "cat", "supercategory": "animal"}],
    }
    (folder / "result.json").write_text(json.dumps(data))
    return folder / "result.json"


def runs(mask):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *edges, flat.size])


def load(root, split):
    place = find_layout(root, "detection").splits[split]
    return CocoInstances(place.annotations, place.images, lambda image, objects: (image, objects))


def test_objects_stay_as_they_are(source, tmp_path):
    annotated = read_labels(source)
    assert annotated.classes == ["cat", "dog"] and [image.name for image in annotated.images] == ["deep/a.png", "b.png"]
    assert [(one.name, one.crowd, one.area) for one in annotated.images[0].objects] == [
        ("dog", False, 99), ("cat", False, 200), ("cat", True, 1000), ("cat", False, 100),
    ]  # fmt: skip
    assert annotated.lost.lines() == [
        f"annotations with the field 'keypoints': 1 (first: {source} 3)",
        "boxes outside of their image, left out: 1 (first: annotation 4 (id 9), bbox [90.0, 5.0, 10.0, 10.0], "
        "deep/a.png)",
        f"categories with the field 'supercategory': 1 (first: {source} 1)",
        f"images with the field 'license': 1 (first: {source} 0)",
    ]
    write_coco(annotated, tmp_path / "out", val_share=0)
    dataset = load(tmp_path / "out", "train")
    before = CocoInstances(source, source.parent / "images", lambda image, objects: (image, objects))
    assert dataset.names == before.names and dataset.classes == before.classes
    for position in range(2):
        (image, found), (old_image, expected) = dataset[position], before[position]
        assert image.tobytes() == old_image.tobytes()
        for name in ("boxes", "labels", "crowd", "areas"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        assert found.segmentations == expected.segmentations


def test_tiles(source, tmp_path):
    """Two columns and two rows of 40: the mask is halved, of the crowd there is what every tile shows, even 3 %."""
    annotated = read_labels(source)
    write_coco(annotated, tmp_path / "out", 0, tiling=Tiling(40, 0, 0.5))
    dataset = load(tmp_path / "out", "train")
    assert dataset.names == ("deep/a_0_0.png", "deep/a_40_0.png", "deep/a_0_20.png", "deep/a_40_20.png", "b.png")
    whole = np.asarray(Image.open(source.parent / "images/deep/a.png"))
    counts = []
    for position, (x, y) in enumerate([(0, 0), (40, 0), (0, 20), (40, 20)]):
        image, objects = dataset[position]
        assert np.array_equal(np.asarray(image), whole[y : y + 40, x : x + 40])
        counts.append(sorted(zip(objects.labels.tolist(), objects.crowd.tolist(), objects.areas.tolist())))
        for row in np.flatnonzero(objects.crowd):
            assert np.array_equal(objects.mask(row), CROWD[y : y + 40, x : x + 40])
        for row, one in enumerate(objects.segmentations):
            if isinstance(one, dict) and not objects.crowd[row]:
                assert np.array_equal(objects.mask(row), MASK[y : y + 40, x : x + 40])
    assert counts == [
        [(0, False, 100.0), (1, False, 100.0)],
        [(0, False, 100.0), (0, False, 100.0)],
        [(0, True, 200.0)],
        [(0, True, 800.0)],
    ]


def test_splits_stay_and_a_class_for_all(tmp_path, capsys):
    write_shapes(tmp_path / "shapes", train=3, val=2, size=(64, 64))
    assert main(["labels", str(tmp_path / "shapes"), str(tmp_path / "out"), "--single-class", "shape"]) == 0
    shown = capsys.readouterr().out
    assert "train: 3 images" in shown and "val: 2 images" in shown and "everything was carried over" in shown
    for split in ("train", "val"):
        found, expected = load(tmp_path / "out", split), load(tmp_path / "shapes", split)
        assert found.classes == ("shape",) and found.names == expected.names
        assert found.class_counts() == [sum(expected.class_counts())]
        assert np.array_equal(found[0][1].masks(), expected[0][1].masks())


def test_one_split_is_divided(source, tmp_path, capsys):
    assert main(["labels", str(source), str(tmp_path / "out"), "--val-share", "0.5"]) == 0
    assert "note: 1 of 2 images validate" in capsys.readouterr().out
    for split in ("train", "val"):
        (image,) = json.loads((tmp_path / "out" / "annotations" / f"instances_{split}.json").read_text())["images"]
        assert (tmp_path / "out" / split / image["file_name"]).is_file()


def test_names_stay_below_the_folder(source, tmp_path):
    data = json.loads(source.read_text())
    data["images"][0]["file_name"] = "../source/images/deep/a.png"
    data["images"][1]["file_name"] = str(source.parent / "images" / "b.png")
    source.write_text(json.dumps(data))
    assert [image.name for image in read_labels(source).images] == ["a.png", "b.png"]


def test_what_cannot_be_read(source, tmp_path):
    data = json.loads(source.read_text())
    data["annotations"][1]["segmentation"] = {"size": [60, 80], "counts": [3]}
    Image.new("RGB", (30, 20)).save(source.parent / "images" / "b.png")
    source.write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match=r"(?s)no object was found \(coco\).*segmentations that cannot be, left out: 1"
    ):
        read_labels(source)
    data["images"][0]["file_name"] = data["images"][1]["file_name"] = "none.png"
    source.write_text(json.dumps(data))
    with pytest.raises(FileNotFoundError, match=r"result\.json: none of its 2 images is in .*source, "):
        read_labels(source)
