"""Tiles cover an image, and objects in them are those of the whole image, cut to the pixel."""

import numpy as np
import pytest

from vssm.data import rle
from vssm.data.labels.annotated import Labelled
from vssm.data.labels.tiles import Tiling, Window


@pytest.mark.parametrize(
    ("length", "size", "overlap", "starts"),
    [
        (100, 100, 0, [0]),
        (40, 100, 20, [0]),
        (101, 100, 0, [0, 1]),
        (300, 100, 0, [0, 100, 200]),
        (250, 100, 0, [0, 100, 150]),
        (250, 100, 50, [0, 50, 100, 150]),
        (230, 100, 20, [0, 80, 130]),
    ],
)
def test_windows(length, size, overlap, starts):
    windows = list(Tiling(size, overlap).windows(length, 30))
    assert windows == [Window(x, 0, min(size, length), 30) for x in starts]
    assert [(w.x, w.y) for w in Tiling(size, overlap).windows(length, length)] == [
        (x, y) for y in starts for x in starts
    ]


def test_boxes():
    tiling = Tiling(100, visible=0.3)
    one = Labelled("tree", (90, 10, 30, 20))
    assert tiling.cut(one, Window(0, 0, 100, 100)).box == (90, 10, 10, 20), "a third is visible"
    assert tiling.cut(one, Window(100, 0, 100, 100)).box == (0, 10, 20, 20)
    assert tiling.cut(one, Window(100, 100, 100, 100)) is None
    assert Tiling(100, visible=0.4).cut(one, Window(0, 0, 100, 100)) is None
    assert tiling.cut(Labelled("tree", (10, 10, 5, 5)), Window(0, 0, 100, 100)).box == (10, 10, 5, 5)


def random_polygon(generator, height, width):
    """A star-shaped polygon, mostly concave."""
    count = int(generator.integers(3, 14))
    angles = np.sort(generator.uniform(0, 2 * np.pi, count))
    radii = generator.uniform(3, 30, count)
    points = np.stack((np.cos(angles) * radii + width / 2, np.sin(angles) * radii + height / 2), 1)
    return points.round(2).ravel().tolist()


@pytest.mark.parametrize("as_mask", [False, True])
def test_masks(as_mask):
    """The mask of a cut polygon is the cut of the polygon's mask; but for a few pixels of the border, where COCO's
    drawing rounds."""
    height, width = 60, 80
    tiling, generator = Tiling(40, visible=1e-9), np.random.default_rng(0)
    cuts = differing = total = 0
    for _ in range(60):
        polygon = random_polygon(generator, height, width)
        whole = rle.decode(rle.of_segmentation([polygon], height, width))
        segmentation = rle.encode(whole) if as_mask else [polygon]
        one = Labelled("tree", rle.box(rle.encode(whole)), segmentation)
        for window in tiling.windows(width, height):
            part = whole[window.y : window.y + window.height, window.x : window.x + window.width]
            cut = tiling.cut(one, window)
            if cut is None:
                assert part.sum() <= 3
                continue
            cuts += 1
            mask = rle.decode(rle.of_segmentation(cut.segmentation, window.height, window.width))
            if as_mask:
                assert np.array_equal(mask, part) and cut.box == rle.box(rle.encode(part))
            x, y, w, h = cut.box
            assert min(x, y, w, h) >= 0 and x + w <= window.width and y + h <= window.height
            differing += int((mask != part).sum())
            total += int(part.sum())
    assert cuts > 100
    assert differing < 0.02 * total


def test_a_share_of_the_polygon_counts_and_not_of_its_box():
    corner = Labelled("tree", (0, 0, 100, 100), [[0, 0, 100, 0, 0, 100]])
    windows = list(Tiling(50).windows(100, 100))
    shares = [Tiling(50, visible=visible).cut(corner, windows[0]) is not None for visible in (0.49, 0.51)]
    assert shares == [True, False]
    assert Tiling(50, visible=0.01).cut(corner, windows[3]) is None
