"""YOLO txt: values by hand, layouts, and what is wrong named by file and line."""

import pytest
import yaml
from PIL import Image

from vssm.data.labels import read_labels


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for number in range(count):
            image = tmp_path / "images" / split / f"{number}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (100, 50)).save(image)
            label(tmp_path, split, number, "1 0.5 0.5 0.2 0.4\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": {0: "cat", 1: "dog"}, "train": "images/train"} | VAL))
    return tmp_path


VAL = {"val": "images/val"}


def label(root, split, number, text):
    path = root / "labels" / split / f"{number}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_boxes_and_polygons(root):
    label(root, "train", 0, "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.3 0.2 0.3 0.8\n")
    annotated = read_labels(root)
    assert annotated.classes == ["cat", "dog"]
    assert [(image.split, image.name) for image in annotated.images] == [
        ("train", "0.jpg"),
        ("train", "1.jpg"),
        ("train", "2.jpg"),
        ("val", "0.jpg"),
    ]
    first = annotated.images[0]
    assert first.size == (100, 50)
    box, polygon = first.objects
    assert (box.name, box.segmentation) == ("dog", None) and box.box == pytest.approx((40, 15, 20, 20))
    assert polygon.name == "cat" and polygon.box == pytest.approx((10, 10, 20, 30))
    assert polygon.segmentation == [pytest.approx([10, 10, 30, 10, 30, 40])]
    assert annotated.lost.lines() == []


def test_what_is_left_out_is_counted(root):
    label(root, "train", 0, "1 0.98 0.5 0.05 0.4\n1 0.98 0.5 0.05 0.4\n1 0.5 0.5 0 0.1\n0 .1 .1 .2 .2 .3 .3\n")
    label(root, "train", 1, "1 0.5 0.5 0.2 0.4 0.93\n")
    (root / "labels" / "train" / "2.txt").unlink()
    label(root, "train", 7, "0 0.5 0.5 0.1 0.1\n")
    (root / "images" / "val" / "0.jpg").write_bytes(b"damaged")
    annotated = read_labels(root)
    assert annotated.images[0].objects[0].box == pytest.approx((95.5, 15, 4.5, 20))
    assert [len(image.objects) for image in annotated.images] == [1, 1, 0]
    lines = annotated.lost.lines()
    assert [line.partition(" (first: ")[0] for line in lines] == [
        "boxes with a confidence: 1",
        "images that cannot be read, left out: 1",
        "images without a label file, taken as images without objects: 1",
        "label files of no image: 2",
        "lines that repeat an earlier one, left out: 1",
        "objects without an area within their image, left out: 2",
    ]
    assert f"(first: {root / 'labels' / 'train' / '0.txt'}, line 2)" in lines[4]


def test_key_points(root):
    plain = yaml.safe_load((root / "data.yaml").read_text())
    (root / "data.yaml").write_text(yaml.safe_dump(plain | {"kpt_shape": [2, 3]}))
    label(root, "train", 0, "1 0.5 0.5 0.2 0.4 .1 .1 2 .2 .2 2\n")
    annotated = read_labels(root)
    assert annotated.images[0].objects[0].box == pytest.approx((40, 15, 20, 20))
    assert annotated.lost.lines()[0].startswith("objects with key points: 1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.2", "line 2: 4 values; expected a class and 4 values of a box"),
        ("1 0.5 0.5 0.2 0.2 0.2 0.2 0.2", "line 2: 8 values"),
        ("2 0.5 0.5 0.2 0.2", r"line 2: class 2; the classes are 0 to 1 \(cat, dog\)"),
        ("-1 0.5 0.5 0.2 0.2", "line 2: class -1"),
        ("0.5 0.5 0.5 0.2 0.2", r"line 2: class 0.5"),
        ("dog 0.5 0.5 0.2 0.2", "line 2: 'dog 0.5 0.5 0.2 0.2' is not a line of numbers"),
        ("1 50 25 20 20", "line 2: values from 20 to 50; they must be shares of the image's width and height"),
        ("1 nan 0.5 0.2 0.2", "line 2: values that are not finite"),
    ],
)
def test_bad_lines(root, line, message):
    label(root, "train", 1, f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(ValueError, match=message) as error:
        read_labels(root)
    assert str(error.value).startswith(str(root / "labels" / "train" / "1.txt"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": {1: "cat"}}, "names have the keys 1, not 0 on"),
        ({"names": []}, "names must be a list"),
        ({"names": ["cat", "cat"]}, "names of classes are there twice: cat, cat"),
        ({"names": ["cat", "dog"], "train": "elsewhere"}, r"elsewhere, of data.yaml, does not exist"),
        ({"names": ["cat", "dog"], "train": "labels"}, "holds no images where data.yaml names them"),
        ({"names": ["cat", "dog"], "kpt_shape": 3}, r"kpt_shape is 3; expected \[points, values of each\]"),
    ],
)
def test_bad_settings(root, settings, message):
    (root / "data.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises((ValueError, OSError), match=message):
        read_labels(root)


def test_layouts(root):
    splits = ["train", "train", "train", "val"]
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\n")
    assert [image.split for image in read_labels(root).images] == splits
    (root / "classes.txt").unlink()
    (root / "list.txt").write_text("./images/train/1.jpg\nimages/val/0.jpg\n")
    (root / "any.yml").write_text(yaml.safe_dump({"names": ["cat", "dog"], "train": "list.txt", "val": "list.txt"}))
    listed = read_labels(root / "any.yml")
    assert [(image.split, image.name) for image in listed.images] == [
        (None, "images/train/1.jpg"),
        (None, "images/val/0.jpg"),
    ]
    assert [len(image.objects) for image in listed.images] == [1, 1]
    (root / "any.yml").write_text(
        yaml.safe_dump({"names": ["cat", "dog"], "train": "../images/train", "test": ["images/val"]})
    )
    assert [image.split for image in read_labels(root).images] == ["train"] * 3 + ["test"]
    (root / "more.yaml").write_text(yaml.safe_dump({"names": ["cat"]}))
    with pytest.raises(ValueError, match=r"has any.yml, more.yaml; name the one to use"):
        read_labels(root)


def test_a_turned_photo(root):
    """Shares are of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(root / "images" / "train" / "0.jpg", exif=exif)
    image = read_labels(root).images[0]
    assert image.size == (50, 100) and image.objects[0].box == pytest.approx((20, 30, 10, 40))


def test_no_objects_at_all(root):
    for path in (root / "labels").rglob("*.txt"):
        path.write_text("")
    with pytest.raises(ValueError, match=r"no object was found \(yolo\)"):
        read_labels(root)
