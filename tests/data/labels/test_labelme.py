"""LabelMe json: polygons, rectangles, circles and masks by hand, and what is lost."""

import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from vssm.data import rle
from vssm.data.labels import read_labels

POLYGON = [[2, 3], [8, 3], [8, 9], [2, 9]]


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def write(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")

    def written(*shapes, name="a", **more):
        plain = {"version": "5.0", "flags": {}, "shapes": list(shapes), "imagePath": "a.jpg", "imageData": None}
        plain |= {"imageHeight": 20, "imageWidth": 30} | more
        (tmp_path / f"{name}.json").write_text(json.dumps(plain))
        return tmp_path

    return written


def test_shapes(write):
    mask = np.zeros((3, 4), np.uint8)
    mask[1:, 1:] = 1
    root = write(
        shape("tree", POLYGON),
        shape("car", [[20, 12], [10, 4]], "rectangle"),
        shape("sun", [[15, 10], [20, 10]], "circle"),
        shape("cat", [[5, 6], [8, 8]], "mask", mask=png(mask)),
        {"label": "tree", "points": [[0, 0], [4, 0], [0, 4]]},
    )
    annotated = read_labels(root)
    assert annotated.classes == ["car", "cat", "sun", "tree"] and annotated.lost.lines() == []
    (image,) = annotated.images
    assert (image.name, image.size, image.content) == ("a.jpg", (30, 20), None)
    tree, car, sun, cat, corner = image.objects
    assert tree.box == (2, 3, 6, 6) and tree.segmentation == [[2, 3, 8, 3, 8, 9, 2, 9]]
    assert car.box == (10, 4, 10, 8)
    assert rle.decode(rle.of_segmentation(car.segmentation, 20, 30))[4:12, 10:20].sum() == 80
    assert sun.box == pytest.approx((10, 5, 10, 10), abs=0.01)
    assert rle.area(rle.of_segmentation(sun.segmentation, 20, 30)) == pytest.approx(math.pi * 25, abs=4)
    expected = np.zeros((20, 30), bool)
    expected[7:9, 6:9] = True
    assert np.array_equal(rle.decode(cat.segmentation), expected) and cat.box == (6, 7, 3, 2)
    assert corner.box == (0, 0, 4, 4)


def test_groups_are_one_object(write):
    other = [[20, 10], [24, 10], [24, 14]]
    root = write(
        shape("tree", POLYGON, group_id=1),
        shape("car", other, group_id=1),
        shape("tree", other, group_id=1),
        shape("tree", POLYGON, group_id=2),
        shape("tree", [[20, 10], [20, 10]], "mask", group_id=2, mask=png(np.ones((1, 1), np.uint8))),
    )
    (image,) = read_labels(root).images
    assert [(one.name, one.box) for one in image.objects] == [
        ("tree", (2, 3, 22, 11)),
        ("car", (20, 10, 4, 4)),
        ("tree", (2, 3, 19, 8)),
    ]
    assert len(image.objects[0].segmentation) == 2 and rle.area(image.objects[2].segmentation) == 37


def test_what_is_lost_is_counted(write):
    root = write(
        shape("tree", [[25, 15], [35, 15], [35, 25], [25, 25]], flags={"blurred": True, "far": False}),
        shape("tree", [[40, 40], [50, 40], [50, 50]], description="outside"),
        shape("tree", [[1, 1], [2, 2]], "line"),
        shape("tree", [[1, 1]], "point"),
        shape("tree", [[1, 1], [2, 2]], "line"),
        shape("tree", [[1, 1], [2, 2], [3, 3]]),
        flags={"night": True},
    )
    write(shape("tree", POLYGON), name="b", imagePath="none.jpg")
    write(shape("tree", POLYGON), name="c", imageWidth=40)
    (root / "d.json").write_text('{"images": []}')
    Image.new("RGB", (9, 9)).save(root / "e.png")
    annotated = read_labels(root)
    assert annotated.images[0].objects[0].box == (25, 15, 5, 5)
    assert [line.partition(" (first: ")[0] for line in annotated.lost.lines()] == [
        "annotation files of no image, left out: 1",
        "descriptions of shapes: 1",
        "flags of images: 1",
        "flags of shapes: 1",
        "images of another size than their annotations state, left out: 1",
        "images without an annotation file, left out: 1",
        "json files without shapes: 1",
        "objects without an area within their image, left out: 2",
        "shapes of type line, left out: 2",
        "shapes of type point, left out: 1",
        "shapes that reach over the border of their image, cut off: 1",
    ]


def test_an_image_within_the_json(write):
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 9, 9)).save(file, "PNG")
    root = write(shape("tree", POLYGON), imageData=base64.b64encode(file.getvalue()).decode(), imagePath="gone.png")
    (root / "a.jpg").unlink()
    (image,) = read_labels(root).images
    assert image.name == "a.png" and image.content == file.getvalue() and image.size == (30, 20)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (shape("tree", [[1, 2], [3, 4]]), r"shape 0 \(polygon\) has 2 points"),
        (shape("tree", [[1, 2], [3, "x"], [1, 1]]), r"shape 0: points must be a list of \[x, y\]"),
        (shape("tree", None), r"shape 0: points must be a list of \[x, y\]"),
        (shape("tree", [[1, 2], [3, float("nan")], [1, 1]]), "points that are not finite"),
        (shape(None, POLYGON), "shape 0 has no label"),
        ("tree", "shape 0 has no label"),
        (shape("tree", [[1, 1], [2, 2]], "mask"), "its mask: not base64"),
        (shape("tree", [[1, 1], [2, 2]], "mask", mask="AAAA"), "its mask is not an image"),
        (
            shape("tree", [[29, 1], [2, 2]], "mask", mask=png(np.ones((2, 2), np.uint8))),
            r"a mask of shape \(2, 2\) at 29, 1 does not fit into 30 x 20",
        ),
    ],
)
def test_bad_shapes(write, entry, message):
    root = write(entry)
    with pytest.raises(ValueError, match=message) as error:
        read_labels(root)
    assert str(error.value).startswith(str(root / "a.json"))


def test_bad_files(write):
    root = write(shape("tree", POLYGON))
    (root / "a.json").write_text('{"shapes": [\n{"label": }]}')
    with pytest.raises(ValueError, match=r"a.json, line 2, column 11: Expecting value"):
        read_labels(root)
    (root / "a.json").write_text('{"shapes": {}, "imagePath": "a.jpg"}')
    with pytest.raises(ValueError, match=r"a.json: shapes must be a list, got dict"):
        read_labels(root)
