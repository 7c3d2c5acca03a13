"""Batches of images of different sizes."""

import pytest
import torch

from vssm.data.padded import PaddedImages


def test_images_keep_their_pixels_and_get_zeros_around():
    images = [torch.full((3, 5, 40), 2.0), torch.full((3, 33, 7), -1.0)]
    batch = PaddedImages.of(images, originals=[(10, 80), (66, 14)])
    assert batch.pixels.shape == (2, 3, 64, 64) and len(batch) == 2
    assert batch.sizes == ((5, 40), (33, 7)) and batch.originals == ((10, 80), (66, 14))
    assert (batch.pixels[0, :, :5, :40] == 2).all() and batch.pixels[0].sum() == 2 * 3 * 5 * 40
    assert (batch.pixels[1, :, :33, :7] == -1).all() and batch.pixels[1].sum() == -3 * 33 * 7


def test_a_multiple_is_not_padded_further():
    batch = PaddedImages.of([torch.ones(1, 64, 32)])
    assert batch.pixels.shape == (1, 1, 64, 32) and batch.originals == batch.sizes == ((64, 32),)
    assert PaddedImages.of([torch.ones(1, 9, 6)], multiple=4).pixels.shape == (1, 1, 12, 8)


def test_moves_as_one():
    batch = PaddedImages.of([torch.ones(1, 4, 4)]).to("meta")
    assert batch.pixels.is_meta and batch.sizes == ((4, 4),)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "no images"),
        ([torch.ones(4, 4)], {}, r"image 0 must be \(C, h, w\)"),
        ([torch.ones(3, 4, 4), torch.ones(3, 0, 4)], {}, "image 1 must be .* not empty"),
        ([torch.ones(3, 4, 4, dtype=torch.uint8)], {}, "floating point"),
        ([torch.ones(3, 4, 4), torch.ones(1, 4, 4)], {}, "image 1 has 1 channels, the first one 3"),
        ([torch.ones(3, 4, 4)], {"originals": [(4, 4), (5, 5)]}, "1 images need as many sizes"),
        ([torch.ones(3, 4, 4)], {"originals": [(0, 4)]}, "original of image 0 is 0 x 4"),
        ([torch.ones(3, 4, 4)], {"multiple": 0}, "multiple must be at least 1"),
    ],
)
def test_what_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        PaddedImages.of(images, **options)


def test_sizes_belong_to_the_pixels():
    with pytest.raises(ValueError, match="image 0 is 5 x 4, which does not fit into pixels of 4 x 4"):
        PaddedImages(torch.ones(1, 3, 4, 4), ((5, 4),), ((5, 4),))
    with pytest.raises(ValueError, match=r"pixels must be \(B, C, H, W\)"):
        PaddedImages(torch.ones(3, 4, 4), ((4, 4),), ((4, 4),))
