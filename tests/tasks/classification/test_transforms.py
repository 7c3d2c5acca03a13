"""The training transform: timm's, by the settings."""

import numpy as np
import torch
from PIL import Image

from vssm.data.preprocess import Preprocess
from vssm.data.sampling import seed_all
from vssm.settings import DataSettings
from vssm.tasks.classification.transforms import changed, preprocess_for, train_transform

PREPROCESS = Preprocess((3, 16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def erased(mode):
    """Values of the erased rectangle of a black image: (C, pixels)."""
    settings = DataSettings(random_erasing=1.0, scale=1.0, hflip=0.0, color_jitter=0.0)
    if mode is not None:
        settings.erase_mode = mode
    seed_all(0)
    image = train_transform(settings, PREPROCESS)(Image.fromarray(np.zeros((16, 16, 3), np.uint8)))
    inside = (image != -2.0).all(0)  # black is (0 - 0.5) / 0.25
    assert 4 < inside.sum() < 16 * 16
    return image[:, inside]


def test_erasing_fills_with_noise_as_the_official_code():
    noise = erased(None)
    assert len(noise.unique()) == noise.numel(), "another value in every pixel and channel"
    assert abs(float(noise.mean())) < 0.5 and 0.5 < float(noise.std()) < 1.5
    assert torch.equal(erased("pixel"), noise)


def test_erasing_with_one_colour_or_the_mean():
    colour = erased("rand")
    assert len(colour.unique(dim=1)[0]) == 1 and len(colour[:, 0].unique()) == 3
    assert (erased("const") == 0).all()


def test_preprocessing_by_the_settings():
    settings = DataSettings(image_size=64, interpolation="nearest", crop_pct=0.5)
    found = preprocess_for(settings, "vmamba_tiny")
    assert (found.input_size, found.interpolation, found.crop_pct) == ((3, 64, 64), "nearest", 0.5)
    assert preprocess_for(DataSettings(), "vmamba_tiny").mean == found.mean
    assert changed(PREPROCESS, DataSettings()) == PREPROCESS


def test_without_variation_it_is_that_of_the_evaluation():
    image = Image.fromarray(np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3))
    settings = DataSettings(augment=False, random_erasing=1.0)
    assert torch.equal(train_transform(settings, PREPROCESS)(image), PREPROCESS.transform()(image))
