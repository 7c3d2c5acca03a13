"""From data settings to data sets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from vssm.data import digits
from vssm.data.imagefolder import ImageFolder, some
from vssm.data.preprocess import Preparation, Preprocess
from vssm.data.split import hold_out, training_and_validation
from vssm.settings import DataSettings

__all__ = ["Splits", "Transform", "held_out_note", "load_splits", "notes_of_hold_out"]

Transform = Callable[..., object]  # of an image, and of what is annotated in it where the task has that


@dataclass(frozen=True)
class Splits:
    """Training images, the images to evaluate on, the names of the classes, and how an image becomes an input.

    `notes` are sentences about the choice of images that a reader must not miss.
    """

    train: Dataset[Any] | None
    val: Dataset[Any]
    classes: tuple[str, ...]
    preprocess: Preparation
    notes: tuple[str, ...] = ()

    def class_counts(self) -> dict[str, list[int]]:
        """Images (or objects) per class, in the order of `classes`: of "train" where it was loaded, and of "val"; for
        those that know it."""
        counts = {name: _class_counts(dataset, len(self.classes)) for name, dataset in self._loaded()}
        return {name: found for name, found in counts.items() if found is not None}

    def fingerprints(self) -> dict[str, str]:
        """Of the names of the images of "train" and of "val", for those that are files."""
        return {name: dataset.fingerprint() for name, dataset in self._loaded() if hasattr(dataset, "fingerprint")}

    def _loaded(self) -> list[tuple[str, Any]]:
        return [(name, dataset) for name, dataset in (("train", self.train), ("val", self.val)) if dataset is not None]


def _class_counts(dataset: Any, classes: int) -> list[int] | None:
    if hasattr(dataset, "class_counts"):
        return dataset.class_counts()
    return np.bincount(np.asarray(dataset.labels), minlength=classes).tolist()


def load_splits(
    settings: DataSettings,
    preprocess: Preprocess,
    train_transform: Transform | None = None,
    classes: tuple[str, ...] | None = None,
    split: str = "val",
) -> Splits:
    """Finds the images. Raises OSError or ValueError with the remedy when they are not there or not right.

    `preprocess` makes a model's input of an image file, `train_transform` (the same without variation when not given)
    that of a training image; the bundled digits have their own. `classes` fixes names and order, for evaluating a
    checkpoint that knows them: `train` is then left out. `split` names the images to evaluate on: "val", or "test" for
    those in the folder `test`.
    """
    name = settings.name or settings.kind_of_images()
    if name is None:
        raise ValueError("no images given: --data.root FOLDER (with CLASS/IMAGE in it), or --data digits")
    if name == "digits":
        return _load_digits(settings, classes, split)
    if name in ("shards", "parquet"):
        from vssm.data.packed import load_packed

        return load_packed(settings, preprocess, train_transform, classes, split)
    if settings.root is None:
        raise ValueError("imagefolder needs a folder: --data.root FOLDER (with CLASS/IMAGE in it)")
    return _load_folder(settings, settings.root, preprocess, train_transform, classes, split)


def _load_digits(settings: DataSettings, classes: tuple[str, ...] | None, split: str) -> Splits:
    if settings.root is not None:
        raise ValueError("data.root has no meaning for the bundled digits; leave out one of the two")
    if split == "test":
        raise ValueError("the bundled digits have no test images beside those they are validated on: vssm validate")
    if classes is not None and classes != digits.CLASSES:
        raise ValueError("the checkpoint was not trained on digits; give its images with --data.root")
    size, interpolation = settings.image_size or 32, settings.interpolation or "bicubic"
    train, test = digits.load_digits(size, settings.augment, settings.split_seed, interpolation)
    return Splits(train, test, digits.CLASSES, digits.preprocess(size, interpolation))


def _load_folder(
    settings: DataSettings,
    root: str,
    preprocess: Preprocess,
    train_transform: Transform | None,
    classes: tuple[str, ...] | None,
    split: str,
) -> Splits:
    evaluated = preprocess.transform()
    if split == "test":
        if not (Path(root) / "test").exists():
            raise FileNotFoundError(
                f"{root} has no folder test; expected test/CLASS/IMAGE (vssm validate takes the validation images)"
            )
        test = ImageFolder(Path(root) / "test", evaluated, classes=classes)
        return Splits(None, test, test.classes, preprocess)
    train_folder, val_folder = training_and_validation(root)
    if val_folder is not None and classes is not None:
        return Splits(None, ImageFolder(val_folder, evaluated, classes=classes), classes, preprocess)
    found = ImageFolder(train_folder, train_transform or evaluated, classes=classes)
    if len(found.classes) == 1:
        raise ValueError(
            f"{train_folder} has only one class, {found.classes[0]}; a classifier needs two or more folders of images"
        )
    if val_folder is not None:
        return Splits(found, ImageFolder(val_folder, evaluated, classes=found.classes), found.classes, preprocess)
    train, val, alone = hold_out(found.samples, train_folder, settings.val_share, settings.split_seed)
    if not val:
        raise ValueError(f"{train_folder} has one image per class: none can be held out to validate; add images")
    return Splits(
        None if classes is not None else found.with_samples(train, found.transform),
        found.with_samples(val, evaluated),
        found.classes,
        preprocess,
        notes_of_hold_out(held_out_note(settings, root, "each class"), [found.classes[label] for label in alone]),
    )


def held_out_note(settings: DataSettings, root: object, of: str = "the images") -> str:
    """The sentence on images that validate because a folder has none for it."""
    return (
        f"no folder val in {root}: {settings.val_share:.0%} of {of} validate "
        f"(data.val_share, drawn with data.split_seed {settings.split_seed})"
    )


def notes_of_hold_out(note: str, alone: list[str]) -> tuple[str, ...]:
    """`note`, and which classes have one image only."""
    return (note, f"classes of one image, which trains and is not validated: {some(alone)}") if alone else (note,)
