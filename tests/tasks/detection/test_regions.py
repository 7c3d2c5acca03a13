"""Features of regions, targets of masks and pasted masks, beside a plain reading of mmdet's rules in numpy."""

import math

import numpy as np
import pytest
import torch

from vssm.tasks.detection.masks import mask_targets, paste
from vssm.tasks.detection.roi import RoIFeatures, level_of


def bilinear(image, y, x):
    """RoIAlign's sampling: nothing a pixel beyond the map, the edge's value up to there."""
    height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    b, r = y - top, x - left
    above = (1 - r) * image[top, left] + r * image[top, right]
    below = (1 - r) * image[bottom, left] + r * image[bottom, right]
    return (1 - b) * above + b * below


def aligned(image, box, cells, scale):
    """The mean of ceil(side / cells) samples per side of each cell; half a pixel from the corner."""
    x1, y1, x2, y2 = (value * scale - 0.5 for value in box)
    width, height = (x2 - x1) / cells, (y2 - y1) / cells
    nx, ny = max(math.ceil(width), 1), max(math.ceil(height), 1)
    found = np.zeros((cells, cells))
    for row in range(cells):
        for column in range(cells):
            samples = [
                bilinear(image, y1 + (row + (j + 0.5) / ny) * height, x1 + (column + (i + 0.5) / nx) * width)
                for j in range(ny)
                for i in range(nx)
            ]
            found[row, column] = np.mean(samples)
    return found


def test_the_level_fits_the_size():
    sides = torch.tensor([1.0, 55, 111.9, 112.1, 223, 225, 449, 5000])
    boxes = torch.stack([sides * 0, sides * 0, sides * 2, sides / 2], dim=1)
    assert level_of(boxes, 56, 4).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    expected = [min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3) for side in sides.tolist()]
    assert level_of(boxes, 56, 4).tolist() == expected
    assert level_of(torch.tensor([[3.0, 3, 3, 9]]), 56, 4).tolist() == [0]  # without area


def test_features_of_regions_as_mmdet_takes_them():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 64 // 2**i, 48 // 2**i, generator=generator, dtype=torch.float64) for i in range(4)]
    boxes = [
        torch.tensor([[3.2, 5.1, 40.9, 33.3], [0, 0, 191.7, 255.5]], dtype=torch.float64),
        torch.tensor([[100, 17, 130.5, 250.25], [60.4, 61.2, 61.1, 63.0]], dtype=torch.float64),
    ]
    features = RoIFeatures((4, 8, 16, 32), cells=7)(maps, boxes)
    assert features.shape == (4, 3, 7, 7)
    flat = [(index, box) for index, found in enumerate(boxes) for box in found]
    levels = level_of(torch.cat(boxes), 56, 4).tolist()
    assert levels == [0, 1, 0, 0] or len(set(levels)) > 1
    for found, (index, box), level in zip(features, flat, levels):
        for channel in range(3):
            expected = aligned(maps[level][index, channel].numpy(), box.tolist(), 7, 1 / (4 * 2**level))
            torch.testing.assert_close(found[channel], torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_no_regions_have_no_features():
    maps = [torch.zeros(1, 5, 4, 4)] * 4
    assert RoIFeatures((4, 8, 16, 32), 7)(maps, [torch.zeros(0, 4)]).shape == (0, 5, 7, 7)


def test_targets_are_cut_from_the_padded_mask_and_binarised():
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 20, 17), bool)
    masks[0, 3:15, 4:17] = rng.uniform(size=(12, 13)) > 0.4
    masks[1, 10:20, 0:9] = True
    boxes = torch.tensor([[4.3, 2.7, 16.9, 15.2], [0.0, 9.5, 9.4, 20.0], [1.5, 8.0, 12.0, 19.0]], dtype=torch.float64)
    objects = torch.tensor([0, 1, 1])
    targets = mask_targets(torch.from_numpy(masks), boxes, objects, (32, 32), cells=7)
    for found, box, index in zip(targets, boxes, objects.tolist()):
        padded = np.zeros((32, 32))
        padded[:20, :17] = masks[index]
        expected = aligned(padded, box.tolist(), 7, 1.0) >= 0.5
        assert found.tolist() == expected.astype(float).tolist()
    assert 0.1 < targets[0].mean() < 0.9
    assert mask_targets(torch.from_numpy(masks), boxes[:0], objects[:0], (32, 32)).shape == (0, 28, 28)


def grid(mask, v, u):
    """A mask's cells at (v, u) in cells, centres at .5, zeros around."""
    value = 0.0
    for row in (math.floor(v - 0.5), math.floor(v - 0.5) + 1):
        for column in (math.floor(u - 0.5), math.floor(u - 0.5) + 1):
            if 0 <= row < len(mask) and 0 <= column < len(mask):
                value += mask[row, column] * (1 - abs(v - 0.5 - row)) * (1 - abs(u - 0.5 - column))
    return value


@pytest.mark.parametrize("box", [(3.3, 4.6, 21.2, 15.9), (-3.0, -2.0, 12.5, 30.0), (20.1, 10.2, 40.0, 40.0)])
def test_a_mask_is_sampled_at_pixel_centres(box):
    mask = np.random.default_rng(1).uniform(size=(28, 28))
    mask = (mask + np.roll(mask, 1, 0) + np.roll(mask, 1, 1)) / 3
    x1, y1, x2, y2 = box
    whole = next(iter(paste(torch.from_numpy(mask)[None], torch.tensor([box], dtype=torch.float64), (24, 26))))
    expected = np.zeros((24, 26))
    for row in range(24):
        for column in range(26):
            v, u = (row + 0.5 - y1) / (y2 - y1) * 28, (column + 0.5 - x1) / (x2 - x1) * 28
            expected[row, column] = grid(mask, v, u)
    clear = abs(expected - 0.5) > 1e-5
    assert clear.mean() > 0.99 and whole.shape == (24, 26) and whole.dtype == torch.bool
    assert (whole.numpy() == (expected >= 0.5))[clear].all()
    assert 5 < whole.sum() < whole.numel()


def test_pasting_what_has_no_extent_or_lies_outside():
    masks = torch.ones(2, 28, 28)
    thin, outside = paste(masks, torch.tensor([[5.0, 3, 5, 8], [50, 50, 60, 60]]), (10, 12))
    assert not outside.any()
    assert thin.any() and thin[:, :4].sum() == 0 and thin[:, 6:].sum() == 0  # the box's own column, and one beside


def test_a_mask_ends_with_zeros_where_the_batch_is_padded():
    corner = torch.ones(1, 4, 4, dtype=torch.bool)
    box, index = torch.tensor([[3.4, 3.4, 4.0, 4.0]]), torch.tensor([0])
    # The last cell's sample is 0.35 of a pixel beyond the centre of the last pixel, in both directions: 0.65 ** 2.
    assert mask_targets(corner, box, index, (32, 32), cells=2).tolist() == [[[1.0, 1.0], [1.0, 0.0]]]
    assert mask_targets(corner, box, index, (4, 4), cells=2).min() == 1  # at the edge of the batch nothing follows
