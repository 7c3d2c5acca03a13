import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from vssm.data.batches import Batch, collate
from vssm.data.imagefolder import ImageFolder
from vssm.data.sampling import ResumableSampler, SeededSamples
from vssm.data.unreadable import SkipUnreadable, Unreadable

SIZE = 12


def jittered(image):
    """The pixels plus noise from torch's generator: an augmentation."""
    return pil_to_tensor(image).float() + torch.rand(3, 4, 4)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(SIZE):
        path = tmp_path / f"class{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(path)
    return tmp_path


def damage(folder, *numbers):
    for number in numbers:
        (folder / f"class{number % 2}" / f"{number:02d}.png").write_bytes(b"damaged")


def epoch(folder, workers=0, start=0, epoch=1, seed=5):
    dataset = ImageFolder(folder, jittered)
    sampler = ResumableSampler(len(dataset), seed, epoch, start)
    loader = DataLoader(SeededSamples(dataset, seed), 4, sampler=sampler, num_workers=workers, collate_fn=collate)
    return list(loader)


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) and a.unreadable == b.unreadable


def test_another_image_takes_the_place_and_the_rest_stays_as_it_was(folder):
    intact = torch.cat([batch.images for batch in epoch(folder)])
    damage(folder, 3, 8)
    batches = epoch(folder)
    found = torch.cat([batch.images for batch in batches])
    changed = (found != intact).flatten(1).any(1)
    assert changed.sum() == 2
    assert [len(batch.targets) for batch in batches] == [4, 4, 4]
    named = [damaged for batch in batches for damaged in batch.unreadable]
    assert sorted(named) == [
        Unreadable(str(folder / "class0" / "08.png"), "not an image, or of a kind that Pillow cannot read"),
        Unreadable(str(folder / "class1" / "03.png"), "not an image, or of a kind that Pillow cannot read"),
    ]
    # What came instead is another image of the folder, augmented on its own.
    sources = [
        pil_to_tensor(Image.open(folder / f"class{n % 2}" / f"{n:02d}.png")) for n in range(12) if n not in (3, 8)
    ]
    for image in found[changed]:
        assert any(((image - source) >= 0).all() and ((image - source) <= 1).all() for source in sources)


def test_the_same_in_every_process_and_after_a_resume(folder):
    damage(folder, 1, 2, 6, 11)
    whole = epoch(folder)
    assert sum(len(batch.unreadable) for batch in whole) == 4
    assert all(same(a, b) for a, b in zip(whole, epoch(folder, workers=2), strict=True))
    assert all(same(a, b) for a, b in zip(whole[1:], epoch(folder, start=4), strict=True))
    again, other = epoch(folder, epoch=2), epoch(folder, seed=6)
    assert not any(torch.equal(a.images, b.images) for a, b in zip(whole, again, strict=True))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(whole, other, strict=True))


def test_when_nothing_can_be_read(folder):
    damage(folder, *range(SIZE))
    for batch in epoch(folder):
        assert (len(batch.images), len(batch.targets), len(batch.unreadable)) == (0, 0, 4)
        assert batch.targets.dtype == torch.long


def test_an_evaluation_leaves_them_out(folder):
    damage(folder, 0, 5)  # the first and the ninth in the order of the folder
    evaluated = SkipUnreadable(ImageFolder(folder, pil_to_tensor))
    assert len(evaluated) == SIZE
    first, second = DataLoader(evaluated, 6, collate_fn=collate)
    assert first.targets.tolist() == [0] * 5
    assert second.targets.tolist() == [1] * 5
    assert first.indices.tolist() + second.indices.tolist() == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert [damaged.path for batch in (first, second) for damaged in batch.unreadable] == [
        str(folder / "class0" / "00.png"),
        str(folder / "class1" / "05.png"),
    ]


def test_other_errors_are_not_hidden(folder):
    def fail(image):
        raise ValueError("a bug of the transform")

    with pytest.raises(ValueError, match="a bug"):
        SkipUnreadable(ImageFolder(folder, fail))[0]
    with pytest.raises(ValueError, match="a bug"):
        SeededSamples(ImageFolder(folder, fail), 0)[0, 0]


def test_a_batch_is_what_lightning_and_pinning_take_apart():
    batch = collate([(torch.zeros(3, 2, 2), 1), Unreadable("a", "b", (torch.ones(3, 2, 2), 0))])
    assert isinstance(batch, Batch)
    assert batch.targets.tolist() == [1, 0]
    assert batch.unreadable == (Unreadable("a", "b", None),)
