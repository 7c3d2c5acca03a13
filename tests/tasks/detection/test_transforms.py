"""Images and objects resized, cropped and mirrored together."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vssm.data.coco import Objects
from vssm.data.keep_ratio import KeepRatio, resize_pixels, size_within
from vssm.tasks.detection.task import stack_images
from vssm.tasks.detection.transforms import DetectionTransform, EvaluationTransform, cut


def square(x, y, side):
    return [[float(v) for v in (x, y, x + side, y, x + side, y + side, x, y + side)]]


def objects(height=40, width=60):
    """Two squares, and a crowd over the left half."""
    boxes = np.asarray([[10, 8, 20, 18], [30, 20, 50, 40], [0, 0, 30, 40]], np.float64)
    return Objects(
        boxes=boxes,
        labels=np.asarray([1, 0, 1]),
        crowd=np.asarray([False, False, True]),
        areas=np.asarray([100.0, 400.0, 1200.0]),
        ids=np.asarray([1, 2, 3]),
        segmentations=(square(10, 8, 10), square(30, 20, 20), [[0.0, 0.0, 30.0, 0.0, 30.0, 40.0, 0.0, 40.0]]),
        size=(height, width),
    )


def picture(height=40, width=60):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((300, 1000), (400, 1333)), ((800, 1333), (800, 1333))],
)
def test_the_size_that_keeps_the_aspect_ratio(size, expected):
    """mmcv: the factor that meets the first of both limits, rounded half up."""
    assert size_within(size, 800, 1333) == expected


def test_pixels_are_resized_without_a_filter_against_aliasing():
    """Half the size: OpenCV's bilinear sample at the middle of each 2 x 2 is their mean; a filter reaches further."""
    pixels = torch.randint(0, 256, (8, 12, 3), dtype=torch.uint8)
    mean = pixels.reshape(4, 2, 6, 2, 3).float().mean((1, 3))
    assert (resize_pixels(pixels, (4, 6)).float() - mean).abs().max() <= 1
    quarter = resize_pixels(pixels, (2, 3)).float()  # 4 times smaller: the 2 x 2 pixels in the middle of each 4 x 4
    middle = pixels.reshape(2, 4, 3, 4, 3)[:, 1:3, :, 1:3].float().mean((1, 3))
    assert (quarter - middle).abs().max() <= 1


def test_boxes_and_masks_are_scaled_with_the_image():
    transform = DetectionTransform(KeepRatio(80, 1000))
    (image, original), target = transform(picture(), objects())
    assert image.shape == (3, 80, 120) and original == (40, 60)
    assert target["boxes"].tolist() == [[20, 16, 40, 36], [60, 40, 100, 80]]
    assert target["labels"].tolist() == [1, 0]  # no crowd
    expected = np.zeros((2, 80, 120), bool)
    expected[0, 16:36, 20:40] = expected[1, 40:80, 60:100] = True
    np.testing.assert_array_equal(target["masks"].numpy(), expected)


def test_a_mirrored_image_has_mirrored_objects():
    plain = DetectionTransform(KeepRatio(40, 1000))(picture(), objects())
    (image, _), target = DetectionTransform(KeepRatio(40, 1000), flip=1.0)(picture(), objects())
    assert torch.equal(image, plain[0][0].flip(-1))
    assert target["boxes"].tolist() == [[40, 8, 50, 18], [10, 20, 30, 40]]
    assert torch.equal(target["masks"], plain[1]["masks"].flip(-1))


def test_sides_are_drawn_and_repeat_with_the_seed():
    transform = DetectionTransform(KeepRatio(40, 1000), sides=(20, 30), masks=False)
    random.seed(0)
    first = [transform(picture(), objects())[0][0].shape[1] for _ in range(12)]
    random.seed(0)
    assert first == [transform(picture(), objects())[0][0].shape[1] for _ in range(12)]
    assert set(first) == {20, 30}


def test_a_part_of_an_image_cuts_its_objects():
    _, target = DetectionTransform(KeepRatio(40, 1000))(picture(), objects())
    part = cut(target, top=10, left=15, height=20, width=20)
    assert part["boxes"].tolist() == [[0, 0, 5, 8], [15, 10, 20, 20]]
    assert part["labels"].tolist() == [1, 0]
    assert torch.equal(part["masks"], target["masks"][:, 10:30, 15:35])
    only = cut(target, top=0, left=0, height=19, width=25)
    assert only["labels"].tolist() == [1] and len(only["masks"]) == 1


def test_crops_keep_boxes_around_their_masks():
    """A large image, so that crops are smaller than it: a box still is that of its mask, to a pixel of rounding."""
    small = objects()
    polygons = tuple([[10 * v for v in one[0]]] for one in small.segmentations)
    big = replace(small, boxes=small.boxes * 10, segmentations=polygons, size=(400, 600))
    transform = DetectionTransform(KeepRatio(480, 1000), sides=(320, 480), flip=0.5, crop=True)
    random.seed(1)
    sizes = set()
    for _ in range(8):
        (image, _), target = transform(picture(400, 600), big)
        sizes.add(tuple(image.shape[1:]))
        assert len(target["labels"]) >= 1 and target["masks"].shape[1:] == image.shape[1:]
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            ys, xs = torch.where(mask)
            found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            assert (found - box).abs().max() <= 2.0
    assert len(sizes) > 2


def test_batches_are_padded_and_remember_the_files():
    evaluated = EvaluationTransform(KeepRatio(40, 1000))
    pairs = [evaluated(picture(), objects()), evaluated(picture(50, 40), objects(50, 40))]
    images, targets = stack_images(pairs)
    assert images.pixels.shape == (2, 3, 64, 64) and targets == [{}, {}]
    assert images.sizes == ((40, 60), (50, 40)) and images.originals == ((40, 60), (50, 40))
    assert torch.equal(images.pixels[1, :, :50, :40], pairs[1][0][0])
    assert images.pixels[0, :, 40:].abs().max() == 0
    assert stack_images([])[1] == []
