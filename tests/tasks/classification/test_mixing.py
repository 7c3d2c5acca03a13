import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vssm.data.sampling import seed_all
from vssm.settings import DataSettings
from vssm.tasks.classification.mixing import Mixing


def mix(images, labels, seed=0, **settings):
    seed_all(seed)
    return Mixing(DataSettings(**settings), classes=5)(images.clone(), labels)


@pytest.mark.parametrize("count", [6, 5])
def test_mixup_blends_images_and_labels_alike(count):
    """The share that numpy's generator draws; the last of an odd batch stays."""
    images, labels = torch.rand(count, 3, 4, 4), torch.arange(count) % 5
    seed_all(3)
    np.random.rand()  # noqa: NPY002 (whether to mix; timm draws from it)
    share = float(np.random.beta(0.8, 0.8))  # noqa: NPY002
    mixed, targets = mix(images, labels, seed=3, mixup=0.8)
    pairs = count // 2 * 2
    one_hot = F.one_hot(labels, 5).float()
    torch.testing.assert_close(mixed[:pairs], share * images[:pairs] + (1 - share) * images[:pairs].flip(0))
    torch.testing.assert_close(targets[:pairs], share * one_hot[:pairs] + (1 - share) * one_hot[:pairs].flip(0))
    assert torch.equal(mixed[pairs:], images[pairs:])
    assert torch.equal(targets[pairs:], one_hot[pairs:])


def test_cutmix_counts_pixels():
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 16, 16)
    mixed, targets = mix(images, torch.tensor([1, 4]), cutmix=1.0)
    share = float(mixed[0].mean())  # pixels that came from the other image
    assert 0 < share < 1
    torch.testing.assert_close(targets[0], torch.tensor([0, 1 - share, 0, 0, share]))


def test_probabilities():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    assert torch.equal(mix(images, labels, mixup=1.0, mixup_prob=0.0)[0], images)
    either = [mix(images, labels, seed, mixup=1.0, cutmix=1.0, mixup_switch_prob=1.0)[0] for seed in range(8)]
    flipped = images.flip(0)
    assert all(((mixed == images) | (mixed == flipped)).all() for mixed in either)  # whole pixels of one or the other
    assert torch.equal(mix(images[:1], labels[:1], mixup=1.0)[0], images[:1])


def test_the_same_seed_draws_the_same():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    first, again, other = (mix(images, labels, seed, mixup=0.5, cutmix=1.0)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
