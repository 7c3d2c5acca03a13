"""Which kind of data a folder holds."""

import pytest
from PIL import Image

from vssm.data.layouts import find_layout, find_layouts


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch() if "." in path else (root / path).mkdir(exist_ok=True)


def found(root, task=None):
    layout = find_layout(root, task)
    places = {
        name: tuple(path.relative_to(root).as_posix() for path in (one.images, one.annotations) if path is not None)
        for name, one in layout.splits.items()
    }
    return layout.kind, layout.task, places


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (
            ("annotations/instances_train2017.json", "annotations/captions_train2017.json", "train2017", "val2017"),
            {"train": ("train2017", "annotations/instances_train2017.json")},
        ),
        (
            ("annotations/instances_train.json", "annotations/instances_val.json", "train", "images/val"),
            {
                "train": ("train", "annotations/instances_train.json"),
                "val": ("images/val", "annotations/instances_val.json"),
            },
        ),
        (("annotations/train.json", "images"), {"train": ("images", "annotations/train.json")}),
        (
            ("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"),
            {
                "train": ("train", "train/_annotations.coco.json"),
                "val": ("valid", "valid/_annotations.coco.json"),
                "test": ("test", "test/_annotations.coco.json"),
            },
        ),
        (("annotations/instances_val.json",), {"val": ("val", "annotations/instances_val.json")}),
    ],
)
def test_coco(tmp_path, paths, expected):
    make(tmp_path, *paths)
    assert found(tmp_path) == ("coco", "detection", expected)


@pytest.mark.parametrize(
    ("kind", "paths", "expected"),
    [
        (
            "ade20k",
            ("images/training", "images/validation", "annotations/training", "annotations/validation"),
            {
                "train": ("images/training", "annotations/training"),
                "val": ("images/validation", "annotations/validation"),
            },
        ),
        ("masks", ("images/train", "masks/train", "images/val"), {"train": ("images/train", "masks/train")}),
        ("masks", ("images/train", "annotations/train"), {"train": ("images/train", "annotations/train")}),
        ("cityscapes", ("leftImg8bit/val/ulm", "gtFine/val/ulm"), {"val": ("leftImg8bit/val", "gtFine/val")}),
        (
            "voc",
            ("JPEGImages/a.jpg", "SegmentationClass/a.png", "ImageSets/Segmentation/val.txt", "Annotations/a.xml"),
            {"val": ("JPEGImages", "SegmentationClass")},
        ),
    ],
)
def test_masks(tmp_path, kind, paths, expected):
    make(tmp_path, *paths)
    assert found(tmp_path) == (kind, "segmentation", expected)


def test_class_folders(tmp_path):
    make(tmp_path / "a", "train/cat/1.jpg", "val/cat/2.jpg")
    assert found(tmp_path / "a") == ("imagefolder", "classification", {"train": ("train",), "val": ("val",)})
    make(tmp_path / "b", "cat/1.jpg", "dog/2.jpg")
    assert found(tmp_path / "b") == ("imagefolder", "classification", {"train": (".",)})


def test_two_kinds_in_one_folder(tmp_path):
    make(tmp_path, "annotations/instances_train.json", "images/train", "masks/train")
    assert [layout.kind for layout in find_layouts(tmp_path)] == ["coco", "masks"]
    assert found(tmp_path, "segmentation")[0] == "masks" and found(tmp_path, "detection")[0] == "coco"
    with pytest.raises(
        ValueError, match=r"more than one kind of data: coco \(detection\), masks \(segmentation\); name"
    ):
        find_layout(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        find_layout(tmp_path / "none")
    Image.new("L", (2, 2)).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="holds no training data that are known here; looked for") as error:
        find_layout(tmp_path)
    for word in ("instances_train.json", "_annotations.coco.json", "ADE20K", "Cityscapes", "Pascal VOC", "CLASS/IMAGE"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match="looked for") as error:
        find_layout(tmp_path, "detection")
    assert "ADE20K" not in str(error.value)


def test_two_files_for_one_split(tmp_path):
    make(tmp_path, "annotations/instances_train.json", "annotations/instances_train2017.json")
    with pytest.raises(
        ValueError, match=r"more than one train split: .*instances_train.json and .*instances_train2017"
    ):
        find_layout(tmp_path)
