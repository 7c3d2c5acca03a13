"""Run-length encoding, to the pixel as pycocotools has it."""

import numpy as np
import pytest
from pycocotools import mask as reference

from vssm.data import rle


def random_masks():
    generator = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 9), (7, 1), (13, 8), (40, 61)):
        yield np.zeros((height, width), bool)
        yield np.ones((height, width), bool)
        for share in (0.02, 0.5, 0.9):
            yield generator.random((height, width)) < share


def random_polygons(count, height, width):
    """Also such as cross themselves, reach out of the image or have no area."""
    generator = np.random.default_rng(1)
    for number in range(count):
        points = int(generator.integers(3, 12))
        polygon = generator.uniform(-0.3, 1.3, (points, 2)) * (width, height)
        if number % 3 == 0:
            polygon = np.round(polygon)
        if number % 7 == 0:
            polygon = polygon[[0, 1, 0]]
        yield polygon.ravel().tolist()


@pytest.mark.parametrize("mask", list(random_masks()), ids=lambda mask: f"{mask.shape}-{mask.sum()}")
def test_masks(mask):
    expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    encoded = rle.encode(mask)
    assert encoded == {"size": list(mask.shape), "counts": expected["counts"].decode()}
    assert np.array_equal(rle.decode(encoded), mask) and rle.decode(encoded).dtype == bool
    assert rle.area(encoded) == mask.sum() == reference.area(expected)
    assert rle.box(encoded) == tuple(reference.toBbox(expected))
    runs = runs_of(mask)
    for counts in (runs, encoded["counts"].encode()):
        assert np.array_equal(rle.decode({"size": list(mask.shape), "counts": counts}), mask)
    assert rle.of_segmentation({"size": list(mask.shape), "counts": runs}, *mask.shape) == encoded


def runs_of(mask):
    """By hand: column order, zeros first."""
    flat, runs, value = mask.T.ravel().tolist(), [0], False
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def test_polygons():
    height, width = 37, 52
    polygons = list(random_polygons(200, height, width))
    areas = set()
    for number, polygon in enumerate(polygons):
        expected = reference.decode(reference.frPyObjects([polygon], height, width))[..., 0].astype(bool)
        assert np.array_equal(rle.decode(rle.of_segmentation([polygon], height, width)), expected), number
        areas.add(int(expected.sum()))
    assert len(areas) > 100 and 0 in areas
    parts = polygons[1:4]
    expected = reference.decode(reference.merge(reference.frPyObjects(parts, height, width)))
    assert np.array_equal(rle.decode(rle.of_segmentation(parts, height, width)), expected)


def test_a_square_by_hand():
    mask = rle.decode(rle.of_segmentation([[1, 2, 4, 2, 4, 5, 1, 5]], 6, 6))
    assert np.argwhere(mask).tolist() == [[y, x] for y in (2, 3, 4) for x in (1, 2, 3)]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "without polygons"),
        ([[1, 2, 3, 4]], "a polygon of 4 values; x and y of at least 3 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 values"),
        ([[1, 2, 3, 4, 5, "6"]], "the coordinate '6'"),
        ([[1, 2, 3, 4, 5, float("nan")]], "the coordinate nan"),
        ([1, 2, 3, 4, 5, 6], "must be a list"),
        ({"size": [4, 5], "counts": [20]}, r"of size \[4, 5\], but the image is \[5, 4\]"),
        ({"size": [5, 4], "counts": [19]}, "an RLE of 19 pixels for a size of 5 x 4 = 20"),
        ({"size": [5, 4], "counts": [-1, 21]}, "run lengths that are no counts"),
        ({"size": [5, 4], "counts": "zzz"}, "characters that do not belong there|in the middle of a value"),
        ({"size": [5, 4], "counts": "d0\x80"}, "characters that do not belong there"),
        ({"size": [5, 4], "counts": "~"}, "characters that do not belong there"),
        ({"size": [5, 4], "counts": "d"}, "end in the middle of a value"),
        ({"size": [5, 4], "counts": None}, "a string or a list, got NoneType"),
        ("4 5", "a list of polygons or an RLE, got str"),
    ],
)
def test_bad_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=message):
        rle.of_segmentation(segmentation, 5, 4)


def test_bad_masks():
    with pytest.raises(ValueError, match=r"bool of shape \(H, W\), got uint8 of shape \(2, 3\)"):
        rle.encode(np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a size \[height, width\], got None"):
        rle.decode({"counts": "04"})
