"""From a folder of images to splits: layouts, counts, and one error for each thing that is wrong."""

import shutil

import pytest
import torch
from PIL import Image

from vssm.data.preprocess import Preprocess
from vssm.data.splits import load_splits
from vssm.settings import DataSettings, Settings, TrainerSettings
from vssm.tasks.classification.transforms import train_transform
from vssm.train.datamodule import Loaders
from vssm.train.trainer import create_trainer

PREPROCESS = Preprocess((3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))


def fill(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")


@pytest.fixture
def root(tmp_path):
    for name, count in {"cat": 30, "dog": 20, "eel": 1}.items():
        fill(tmp_path / "images" / name, count)
    return tmp_path / "images"


def load(root, split="val", classes=None, **changes):
    return load_splits(DataSettings("imagefolder", str(root), **changes), PREPROCESS, None, classes, split)


def paths(dataset, root):
    return {path.relative_to(root).as_posix() for path, _ in dataset.samples}


def test_a_folder_without_val_is_split(root, tmp_path):
    whole = load(root)
    assert whole.classes == ("cat", "dog", "eel")
    train, val = paths(whole.train, root), paths(whole.val, root)
    assert not train & val
    assert len(train | val) == 51
    counts = whole.class_counts()
    assert [sum(pair) for pair in zip(counts["train"], counts["val"], strict=True)] == [30, 20, 1]
    assert counts["val"][2] == 0
    assert "20% of each class validate (data.val_share, drawn with data.split_seed 0)" in whole.notes[0]
    assert whole.notes[1] == "classes of one image, which trains and is not validated: eel"
    evaluated = load(root, classes=whole.classes)
    assert evaluated.train is None
    assert paths(evaluated.val, root) == val
    moved = tmp_path / "moved"
    shutil.copytree(root, moved / "train")
    assert paths(load(moved).val, moved / "train") == val
    assert paths(load(root, split_seed=1).val, root) != val


def test_training_images_vary_and_validation_images_do_not(root):
    settings = DataSettings("imagefolder", str(root))
    splits = load_splits(settings, PREPROCESS, train_transform(settings, PREPROCESS))
    assert splits.train.transform is not splits.val.transform
    assert "RandomResizedCrop" in str(splits.train.transform)
    assert "RandomResizedCrop" not in str(splits.val.transform)


def test_test_images(root):
    (root / "train").mkdir()
    for name in ("cat", "dog", "eel"):
        (root / name).rename(root / "train" / name)
    with pytest.raises(FileNotFoundError, match="images has no folder test; expected test/CLASS/IMAGE"):
        load(root, "test", ("cat", "dog"))
    fill(root / "test" / "dog", 3)
    splits = load(root, "test", ("cat", "dog"))
    assert paths(splits.val, root) == {f"test/dog/{n}.png" for n in range(3)}
    assert splits.class_counts() == {"val": [0, 3]}
    with pytest.raises(ValueError, match="the bundled digits have no test images"):
        load_splits(DataSettings("digits"), PREPROCESS, split="test")


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ({}, "has no class folders; expected .*images/CLASS/IMAGE"),
        ({"cat": 3}, "images has only one class, cat; a classifier needs two or more"),
        ({"cat": 3, "dog": 0}, "dog holds no images"),
        ({"cat": 1, "dog": 1}, "one image per class: none can be held out"),
        ({"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/elk": 1}, "val has elk, which the training classes"),
        ({"train/cat": 3, "train/dog": 3, "val/cat": 0}, "val holds no images"),
        ({"train/cat": 3, "val/cat": 1}, "train has only one class, cat"),
    ],
)
def test_bad_folders(tmp_path, folders, words):
    (tmp_path / "images").mkdir()
    for name, count in folders.items():
        fill(tmp_path / "images" / name, count)
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "images")


def test_batches_arrive_as_pixels_and_leave_as_inputs(root):
    """What the loaders give equals what the data set gives, one image at a time, to the bit."""
    settings = DataSettings("imagefolder", root=str(root), image_size=8, batch_size=4, augment=False)
    splits = load_splits(settings, PREPROCESS)
    loaders = Loaders(splits, settings, seed=0)
    loaders.trainer = create_trainer(Settings(data=settings, trainer=TrainerSettings(accelerator="cpu", devices=1)))
    (first, *_) = loaders.val_dataloader()
    assert (first.images.dtype, first.images.shape) == (torch.uint8, (4, 8, 8, 3))
    arrived = loaders.on_after_batch_transfer(first, 0)
    assert torch.equal(arrived.images, torch.stack([splits.val[index][0] for index in range(4)]))
    assert torch.equal(arrived.targets, first.targets)
    (batch, *_) = loaders.train_dataloader()
    assert batch.images.dtype == torch.uint8
    settings.augment, settings.random_erasing = True, 0.5
    erasing = Loaders(load_splits(settings, PREPROCESS, train_transform(settings, PREPROCESS)), settings, seed=0)
    erasing.trainer = loaders.trainer
    (batch, *_) = erasing.train_dataloader()
    assert batch.images.dtype == torch.float32, "erasing comes after the normalisation"
    assert erasing.on_after_batch_transfer(batch, 0) is batch
