"""Training crops and evaluated images, against plain readings of each rule."""

import colorsys
import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image

from vssm.data.keep_ratio import KeepRatio
from vssm.data.padded import PaddedImages
from vssm.settings import DataSettings
from vssm.tasks.segmentation.photometric import Distortion
from vssm.tasks.segmentation.transforms import Crop, CropTransform, WholeTransform, mixed, stack

PREPROCESS = KeepRatio(32, 128, multiple=1)
PLAIN = {"resize_range": (1.0, 1.0), "max_class_share": 1.0, "flip": 0.0, "photometric": False}


def scene(height, width, classes=4):
    """Pixels that name their position, labels in vertical stripes."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    return Image.fromarray(pixels), (columns * classes // width).astype(np.uint8)


def raw(crop):
    """The 8-bit pixels of a crop."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std))
    return (255 * (crop.pixels * std + mean)).round().long()


def test_a_crop_is_a_window_of_both():
    image, labels = scene(32, 80)
    random.seed(1)
    corners = set()
    for _ in range(20):
        crop = CropTransform(PREPROCESS, 24, **PLAIN)(image, labels)
        top, left = (int(raw(crop)[channel, 0, 0]) for channel in (0, 1))
        window = np.asarray(image)[top : top + 24, left : left + 24]
        assert np.array_equal(raw(crop).permute(1, 2, 0), window)
        assert np.array_equal(crop.labels, labels[top : top + 24, left : left + 24])
        assert crop.labels.dtype == torch.int64 and crop.pixels.dtype == torch.float32
        corners.add((top, left))
    assert max(top for top, _ in corners) <= 8 and max(left for _, left in corners) <= 56 and len(corners) > 15


def test_every_corner_is_drawn():
    image, labels = scene(32, 35)
    transform = CropTransform(PREPROCESS, 32, **PLAIN)
    assert {int(raw(transform(image, labels))[1, 0, 0]) for _ in range(60)} == {0, 1, 2, 3}


def test_the_image_smaller_than_the_crop_is_filled_up():
    """0 after normalisation, 255 in the labels, at the right and the bottom."""
    image, labels = scene(32, 40)
    crop = CropTransform(PREPROCESS, 48, **PLAIN)(image, labels)
    assert crop.pixels.shape == (3, 48, 48) and crop.labels.shape == (48, 48)
    assert np.array_equal(raw(crop)[:, :32, :40].permute(1, 2, 0), np.asarray(image))
    assert (crop.pixels[:, 32:] == 0).all() and (crop.pixels[:, :, 40:] == 0).all()
    assert np.array_equal(crop.labels[:32, :40], labels)
    assert (crop.labels[32:] == 255).all() and (crop.labels[:, 40:] == 255).all()


def test_mirrored():
    image, labels = scene(32, 32)
    plain = CropTransform(PREPROCESS, 32, **PLAIN)(image, labels)
    mirrored = CropTransform(PREPROCESS, 32, **{**PLAIN, "flip": 1.0})(image, labels)
    assert torch.equal(mirrored.pixels, plain.pixels.flip(2)) and torch.equal(mirrored.labels, plain.labels.flip(1))
    random.seed(0)
    half = CropTransform(PREPROCESS, 32, **{**PLAIN, "flip": 0.5})
    found = sum(torch.equal(half(image, labels).labels, plain.labels) for _ in range(200))
    assert 75 <= found <= 125


@pytest.mark.parametrize("size", [(32, 48), (20, 90), (64, 33)])
def test_sizes_are_those_of_the_rule(size):
    """The shorter side at most 32 f, the longer at most 128 f, both of them whole numbers first; f is uniform."""
    image, labels = scene(*size)
    random.seed(3)
    factors = []
    for _ in range(30):
        state = random.getstate()
        crop = CropTransform(PREPROCESS, 300, **{**PLAIN, "resize_range": (0.5, 2.0)})(image, labels)
        random.setstate(state)
        factor = random.uniform(0.5, 2.0)
        scale = min(int(128 * factor) / max(size), int(32 * factor) / min(size))
        expected = [int(side * scale + 0.5) for side in size]
        valid = crop.labels != 255
        assert [int(valid.any(1).sum()), int(valid.any(0).sum())] == expected
        factors.append(factor)
    assert min(factors) < 0.7 and max(factors) > 1.8


def test_labels_take_the_nearest_pixel_and_no_value_between():
    """Pixel floor((i + 0.5) scale): labels stay where the image is."""
    image, labels = scene(20, 30)
    labels = np.where(labels % 2, 200, 3).astype(np.uint8)
    crop = CropTransform(PREPROCESS, 48, **PLAIN)(image, labels)
    rows, columns = ((np.arange(n) + 0.5) * 0.625 for n in (32, 48))
    assert np.array_equal(crop.labels[:32, :48], labels[rows.astype(int)][:, columns.astype(int)])


def test_labels_are_not_moved_against_the_image():
    """The centre of a square, after resizing: the same in pixels and in labels, on average over sizes."""
    labels = np.zeros((40, 40), np.uint8)
    labels[12:27, 12:27] = 1
    image = Image.fromarray(np.repeat(labels[..., None] * 255, 3, 2))
    apart = []
    for side in range(23, 64, 4):
        preprocess = dataclasses.replace(PREPROCESS, short_side=side, long_side=2 * side)
        crop = CropTransform(preprocess, 64, **PLAIN)(image, labels)
        grey = crop.pixels[0, :side, :side] - crop.pixels[0, 0, 0]
        truth = (crop.labels[:side, :side] == 1).float()
        at = torch.arange(side).float()
        apart.append(float((truth.sum(1) * at).sum() / truth.sum() - (grey.sum(1) * at).sum() / grey.sum()))
    assert abs(np.mean(apart)) < 0.1, apart


def test_crops_of_one_class_are_refused():
    """Two halves: without the rule many crops are of one class; with it hardly any."""
    labels = np.zeros((32, 64), np.uint8)
    labels[:, 32:] = 1
    image = scene(32, 64)[0]

    def pure(share):
        random.seed(0)
        transform = CropTransform(PREPROCESS, 24, **{**PLAIN, "max_class_share": share})
        return sum(len(transform(image, labels).labels.unique()) == 1 for _ in range(60))

    assert pure(1.0) > 18
    assert pure(0.75) < 5


def test_ten_crops_are_refused_at_most():
    labels = np.zeros((32, 128), np.uint8)
    random.seed(0)
    CropTransform(PREPROCESS, 24, **{**PLAIN, "max_class_share": 0.75})(scene(32, 128)[0], labels)
    after = random.random()
    random.seed(0)
    random.uniform(1.0, 1.0)
    for _ in range(11):
        random.randrange(9), random.randrange(105)
    random.random()  # the mirror
    assert after == random.random()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 0, 0, 1], False), ([0, 0, 1, 1], True), ([0] * 4, False), ([0, 0, 0, 1, 1], True), ([0, 0, 1, 1, 255], True),
     ([255] * 4, False), ([0, 0, 0, 255, 255], False), ([7, 7, 254, 255], True)],
)  # fmt: skip
def test_mixed(labels, expected):
    """As mmseg: unique labels without 255; more than one, and the largest below 3/4 of their sum."""
    values, counts = np.unique(labels, return_counts=True)
    counts = counts[values != 255]
    assert (len(counts) > 1 and counts.max() / counts.sum() < 0.75) == expected
    assert mixed(torch.tensor([labels], dtype=torch.uint8), 0.75) == expected


def test_without_variation_it_is_the_middle():
    image, labels = scene(32, 80)
    transform = CropTransform(PREPROCESS, 20, vary=False)
    crop = transform(image, labels)
    assert np.array_equal(crop.labels, labels[6:26, 30:50]) and torch.equal(
        crop.pixels, transform(image, labels).pixels
    )


def test_the_settings_reach_it():
    settings = DataSettings(
        "masks", crop_size=20, resize_range=[0.75, 1.5], max_class_share=0.9, hflip=0.25, photometric=False
    )
    found = CropTransform.of(PREPROCESS, settings)
    assert (found.side, found.resize_range, found.max_class_share) == (20, (0.75, 1.5), 0.9)
    assert (found.flip, found.photometric, found.vary) == (0.25, False, True)


def test_the_same_generator_gives_the_same_crop():
    image, labels = scene(40, 60)
    transform = CropTransform(PREPROCESS, 24)
    crops = []
    for seed in (5, 5, 6):
        random.seed(seed)
        crops.append(transform(image, labels))
    assert torch.equal(crops[0].pixels, crops[1].pixels) and torch.equal(crops[0].labels, crops[1].labels)
    assert not torch.equal(crops[0].pixels, crops[2].pixels)


def colours():
    generator = np.random.default_rng(0)
    extremes = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255], [9, 9, 9], [255, 255, 0]]
    return np.concatenate([generator.integers(0, 256, (50, 3)), extremes]).astype(np.uint8)[None]


def by_hand(pixels, brightness=None, contrast=None, saturation=None, hue=None, late=False):
    """mmseg's order, in floating point and one pixel at a time."""
    found = []
    for pixel in pixels.reshape(-1, 3).astype(float):
        x = np.clip(pixel + (brightness or 0), 0, 255)
        if contrast is not None and not late:
            x = np.clip(x * contrast, 0, 255)
        h, s, v = colorsys.rgb_to_hsv(*(x / 255))
        s = min(1, s * (1 if saturation is None else saturation))
        h = (h + (hue or 0) / 180) % 1
        x = 255 * np.array(colorsys.hsv_to_rgb(h, s, v))
        if contrast is not None and late:
            x = np.clip(x * contrast, 0, 255)
        found.append(x)
    return np.array(found).reshape(pixels.shape)


@pytest.mark.parametrize(
    "drawn",
    [{"brightness": 31.0}, {"brightness": -31.0}, {"contrast": 1.5}, {"contrast": 0.5}, {"saturation": 1.5},
     {"saturation": 0.5}, {"hue": 17.5}, {"hue": -17.5}, {},
     {"brightness": 20.0, "contrast": 1.4, "saturation": 1.3, "hue": -9.0},
     {"brightness": 20.0, "contrast": 1.4, "saturation": 1.3, "hue": -9.0, "late": True}],
)  # fmt: skip
def test_colours(drawn):
    pixels = colours()
    found = Distortion(**drawn)(torch.from_numpy(pixels))
    assert found.dtype == torch.uint8
    assert np.abs(found.numpy() - by_hand(pixels, **drawn)).max() < 0.51


def test_drawn_distortions():
    random.seed(0)
    drawn = [Distortion.draw() for _ in range(400)]
    for name, low, high in (
        ("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5), ("hue", -18, 18),
    ):  # fmt: skip
        values = [value for value in (getattr(one, name) for one in drawn) if value is not None]
        assert 160 <= len(values) <= 240
        assert low <= min(values) < low + 0.1 * (high - low) and high - 0.1 * (high - low) < max(values) <= high
    assert 160 <= sum(one.late for one in drawn) <= 240


def test_whole_images_and_stacking():
    images = [scene(16, 24), scene(64, 40)]
    samples = [WholeTransform(PREPROCESS)(*one) for one in images]
    batch, labels = stack(samples)
    assert isinstance(batch, PaddedImages)
    assert batch.sizes == ((32, 48), (51, 32)) and batch.originals == ((16, 24), (64, 40))
    assert batch.pixels.shape == (2, 3, 51, 48)
    assert all(np.array_equal(a, b) and a.dtype == torch.uint8 for a, (_, b) in zip(labels, images, strict=True))
    crops = [CropTransform(PREPROCESS, 24)(*one) for one in images]
    pixels, labels = stack(crops)
    assert pixels.shape == (2, 3, 24, 24) and labels.shape == (2, 24, 24)
    assert torch.equal(pixels[1], crops[1].pixels) and isinstance(crops[0], Crop)
    assert len(stack([])[1]) == 0
