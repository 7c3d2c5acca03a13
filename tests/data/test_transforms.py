import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.transforms_factory import create_transform
from torchvision.transforms import InterpolationMode, functional

from vssm.data import resize
from vssm.data.image import open_image
from vssm.data.preprocess import Preprocess
from vssm.data.resize import resized_crop
from vssm.data.transforms import ImageTransform, ResizedCenterCrop

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def timm_transform(size, interpolation="bicubic", crop_pct=0.875, **more):
    return create_transform((3, *size), mean=MEAN, std=STD, interpolation=interpolation, crop_pct=crop_pct, **more)


def noise(width, height, channels=3):
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 255, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


def levels(tensor, reference):
    """Differences of two normalised images in levels of 255."""
    return ((tensor - reference) * torch.tensor(STD).view(3, 1, 1) * 255).abs()


SIZES = [
    (500, 375),
    (375, 500),
    (256, 256),
    (64, 64),
    (31, 77),
    (1, 9),
    (640, 427),
    (257, 300),
    (1000, 255),
    (224, 224),
]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.98, 1.0])
def test_evaluation_is_that_of_timm(interpolation, crop_pct):
    reference = timm_transform((64, 64), interpolation, crop_pct)
    ours = ImageTransform(reference)
    assert isinstance(ours.image_steps.transforms[0], ResizedCenterCrop)
    for size in SIZES:
        found = levels(ours(noise(*size)), reference(noise(*size)))
        assert found.max() < 1.01, size
        assert (found > 0.5).float().mean() < 0.02, size


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_a_crop_is_that_of_torchvision(interpolation, vectorised, monkeypatch):
    """Of pixels from Pillow: to the bit with its resampling, nearly with torch's."""
    monkeypatch.setattr(resize, "_has_avx2", lambda: vectorised)
    mode, generator = InterpolationMode(interpolation), np.random.default_rng(0)
    for width, height in SIZES:
        image = noise(width, height)
        top, left = int(generator.integers(0, height)), int(generator.integers(0, width))
        box = (top, left, int(generator.integers(1, height - top + 1)), int(generator.integers(1, width - left + 1)))
        found = resized_crop(image, box, (40, 24), mode)
        expected = functional.resized_crop(image, *box, [40, 24], mode)
        difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
        assert found.size == (24, 40) and difference.max() <= 2 * (vectorised and interpolation != "nearest"), box
        assert (difference > 0).mean() < 0.03, box
        grey = noise(width, height, 1)
        assert resized_crop(grey, box, (40, 24), mode) == functional.resized_crop(grey, *box, [40, 24], mode)


@pytest.mark.parametrize("options", [{"interpolation": "nearest"}, {"size": (64, 48)}], ids=["nearest", "not square"])
def test_other_evaluation_is_that_of_timm_to_the_bit(options):
    reference = timm_transform(**{"size": (64, 64), **options})
    for size in SIZES:
        assert torch.equal(ImageTransform(reference)(noise(*size)), reference(noise(*size))), size


@pytest.mark.parametrize("options", [{}, {"auto_augment": "rand-m9-mstd0.5-inc1"}, {"re_prob": 1.0}], ids=str)
def test_training_is_that_of_timm_to_the_bit(options, monkeypatch):
    """With Pillow's resampling, so that only the order of steps and the random numbers are compared."""
    import random

    monkeypatch.setattr(resize, "_has_avx2", lambda: False)
    reference = timm_transform((64, 64), is_training=True, **options)
    ours = ImageTransform(reference)
    for seed, size in enumerate(SIZES[:6]):
        found = []
        for transform in (ours, reference):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            found.append(transform(noise(*size)))
        assert torch.equal(*found)


def test_grey():
    transform = Preprocess((1, 8, 8), (0.3,), (0.5,), crop_pct=1.0).transform()
    pixels = transform.pixels(noise(8, 8, 1))
    assert (pixels.shape, pixels.dtype) == ((8, 8, 1), torch.uint8)
    expected = (torch.from_numpy(np.array(noise(8, 8, 1))).float() / 255 - 0.3) / 0.5
    assert torch.equal(transform.normalise(pixels), expected[None])


def test_many_images_are_normalised_as_one():
    transform = ImageTransform(timm_transform((32, 32)))
    images = [noise(40, 50), noise(50, 40)]
    together = transform.normalise(torch.stack([transform.pixels(image) for image in images]))
    assert together.is_contiguous()
    assert torch.equal(together, torch.stack([transform(image) for image in images]))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Photographs side by side, 2560 x 1708: the detail of a large photo, which enlarging one would lack."""
    tiles = load_sample_images().images
    rows = [np.hstack([tiles[(row + column) % 2] for column in range(4)]) for row in range(4)]
    path = tmp_path_factory.mktemp("photo") / "large.jpg"
    Image.fromarray(np.vstack(rows)).save(path, quality=90)
    return path


def test_a_large_jpeg_decoded_smaller_is_nearly_the_same(photo):
    """The documented tolerance: half a level of 255 in the mean, and 99.9 % of the values within 8."""
    preprocess = Preprocess((3, 224, 224), MEAN, STD)
    transform = preprocess.transform()
    assert transform.min_side == 512
    assert open_image(photo, 3, transform.min_side).size == (1280, 854)
    found = levels(preprocess(photo), transform(open_image(photo)))
    assert 0 < found.mean() < 0.5
    assert found.flatten().kthvalue(int(found.numel() * 0.999)).values < 8
