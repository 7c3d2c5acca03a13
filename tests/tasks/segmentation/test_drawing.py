"""Labels over an image, and their legend."""

import numpy as np
import pytest
from PIL import Image

from vssm.tasks.colors import class_color
from vssm.tasks.segmentation.drawing import UNLABELLED, draw_labels, shares


def test_shares():
    labels = np.array([[0, 0, 2, 255], [2, 2, 2, 1]], np.uint8)
    assert shares(labels) == [(2, 0.5), (0, 0.25), (1, 0.125), (255, 0.125)]


def test_the_colours_are_half_the_image_and_full_at_the_borders():
    image = Image.new("RGB", (600, 500), (40, 80, 120))
    labels = np.zeros((500, 600), np.uint8)
    labels[:, 300:], labels[400:] = 1, 255
    picture = draw_labels(image, labels, ("sky", "road"))
    assert picture.width == 600 and picture.height > 500
    pixels = np.asarray(picture).astype(int)
    for (y, x), color in {(50, 50): class_color(0), (50, 500): class_color(1), (450, 50): UNLABELLED}.items():
        assert np.abs(pixels[y, x] - (np.array((40, 80, 120)) + color) / 2).max() <= 1
    assert tuple(pixels[50, 299]) == class_color(0) and tuple(pixels[399, 400]) == class_color(1)
    below = {tuple(pixel) for pixel in pixels[500:].reshape(-1, 3)}
    assert below >= {class_color(0), class_color(1), UNLABELLED, (255, 255, 255), (0, 0, 0)}


@pytest.mark.parametrize("size", [(16, 16), (30, 100), (100, 30), (481, 2)])
def test_small_images_are_enlarged(size):
    width, height = size
    labels = np.zeros((height, width), np.uint8)
    labels[0, 0] = 1
    picture = draw_labels(Image.new("L", size), labels, ("a", "a name that is far longer than the picture is wide" * 2))
    factor = picture.width // width
    assert picture.width == factor * width and max(factor * width, factor * height) >= 480
    corner = np.asarray(picture).astype(int)[0, 0]
    assert np.abs(corner - np.array(class_color(1)) / 2).max() <= 1 or tuple(corner) == class_color(1)


def test_many_classes_are_cut_short():
    labels = np.arange(150, dtype=np.uint8).repeat(40).reshape(60, 100)
    names = [f"class {label}" for label in range(150)]
    few, many = (draw_labels(Image.new("RGB", (100, 60)), np.minimum(labels, most), names) for most in (23, 149))
    assert many.height <= few.height + 60


def test_colours_differ():
    colors = {class_color(label) for label in range(150)}
    assert len(colors) == 150 and UNLABELLED not in colors


def test_labels_of_another_size():
    with pytest.raises(ValueError, match=r"labels are \[3, 4\] for an image of 3 x 5"):
        draw_labels(Image.new("RGB", (5, 3)), np.zeros((3, 4), np.uint8), ("a",))
