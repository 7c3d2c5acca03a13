import pytest
import torch
from PIL import Image

from vssm.data.augment import random_affine
from vssm.data.digits import load_digits, preprocess


@pytest.fixture(scope="module")
def splits():
    return load_digits(augment=False)


def test_split_is_stratified_and_complete(splits):
    train, test = splits
    assert (len(train), len(test)) == (1437, 360)
    assert sorted([*train.positions, *test.positions]) == list(range(1797))
    assert all(35 <= count <= 37 for count in torch.bincount(test.labels).tolist())


def test_split_depends_on_its_seed_only(splits):
    _, again = load_digits(augment=True)
    _, other = load_digits(split_seed=1)
    assert (splits[1].positions == again.positions).all()
    assert (splits[1].positions != other.positions).any()


def test_images_are_normalised(splits):
    images = splits[0].images
    assert images.shape == (1437, 1, 32, 32)
    assert images.dtype == torch.float32
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02


def test_prediction_sees_what_training_saw(splits, tmp_path):
    """A scan saved as a PNG and read by the stored preprocessing equals the data set's tensor."""
    from sklearn import datasets

    position = splits[1].positions[7]
    scan = datasets.load_digits().images[position]
    Image.fromarray((scan * (255 / 16)).round().astype("uint8")).save(tmp_path / "digit.png")
    assert torch.equal(preprocess()(tmp_path / "digit.png"), splits[1].images[7])


def test_augmentation_changes_training_images_only():
    train, test = load_digits()
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(test[0][0], test[0][0])
    assert not torch.equal(train[0][0], train.images[0])


def test_random_affine_of_nothing_is_the_image():
    image = torch.randn(1, 32, 32)
    same = random_affine(image, fill=-1.0, degrees=0, shift=0, scale=0, shear=0)
    torch.testing.assert_close(same, image, atol=1e-5, rtol=0)


def test_random_affine_fills_with_the_background():
    """A flat image of the background colour stays flat wherever it is moved."""
    image = torch.full((1, 32, 32), -0.7)
    torch.testing.assert_close(random_affine(image, fill=-0.7, shift=0.5), image)
