"""A folder of images, one folder per class: CLASS/..."""

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from vssm._words import spelled
from vssm.data.files import IMAGE_SUFFIXES, image_files, printable_name
from vssm.data.image import open_image

__all__ = ["ImageFolder", "class_names", "renumbered", "require_folder", "some"]


class ImageFolder(Dataset[tuple[object, int]]):
    """Image files of one split, sorted by class and name, so that an index means the same on every machine.

    Args:
        folder: holds one folder per class
        transform: what is done to the PIL image; one with `min_side` allows large JPEGs to be decoded smaller
        channels: 3 reads RGB, 1 reads grey
        classes: the names and order to use; the folder's own, sorted, when not given

    Raises FileNotFoundError, NotADirectoryError or ValueError: folder missing or a file, no class folders, a class
    without images, or (with `classes`) folders that are not those classes.
    """

    def __init__(
        self,
        folder: str | Path,
        transform: Callable[[Image.Image], object],
        channels: int = 3,
        classes: Sequence[str] | None = None,
    ):
        self.folder = Path(folder)
        self.transform = transform
        self.channels = channels
        found = class_names(self.folder)
        if classes is not None:
            _check_same_classes(self.folder, found, classes)
        self.classes = tuple(found if classes is None else classes)
        folders = {spelled(name): name for name in found}
        self.samples: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            own = folders.get(spelled(name))
            images = [] if own is None else list(image_files(self.folder / own))
            if not images and classes is None:
                raise ValueError(
                    f"{self.folder / name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                    "fill it or remove the folder"
                )
            self.samples.extend((path, label) for path in images)
        if not self.samples:
            raise ValueError(f"{self.folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")

    @property
    def labels(self) -> list[int]:
        return [label for _, label in self.samples]

    def fingerprint(self) -> str:
        """The same for the same files in the same order, wherever the folder lies: a hash of their names."""
        names = (os.fsencode(spelled(path.relative_to(self.folder).as_posix())) for path, _ in self.samples)
        return hashlib.sha256(b"\0".join(names)).hexdigest()

    def with_samples(
        self, samples: Sequence[tuple[Path, int]], transform: Callable[[Image.Image], object]
    ) -> "ImageFolder":
        """The same folder and classes with some of the images only, and another transform."""
        part = copy.copy(self)
        part.samples, part.transform = list(samples), transform
        return part

    def with_transform(self, transform: Callable[[Image.Image], object]) -> "ImageFolder":
        return self.with_samples(self.samples, transform)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[object, int]:
        path, label = self.samples[index]
        min_side: int | None = getattr(self.transform, "min_side", None)
        return self.transform(open_image(path, self.channels, min_side)), label


def class_names(folder: Path) -> list[str]:
    """The class folders of one split, sorted. Raises when there is no such folder, no class in it, or one twice.

    Names are compared, here and with those of other splits and runs, however their accents are written.
    """
    require_folder(folder, "one folder of images per class")
    names = sorted((p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=spelled)
    if not names:
        raise ValueError(
            f"{folder} has no class folders; expected {folder}/CLASS/IMAGE, one folder of images per class"
        )
    for name in names:
        if not name.isprintable():
            raise ValueError(
                f"{printable_name(folder / name)}: the name of a class has to be printable Unicode; rename the folder"
            )
    for name, next_name in pairwise(names):
        if spelled(name) == spelled(next_name):
            raise ValueError(
                f"{folder} has {name} twice, with the accents written in two ways ({name!a} and {next_name!a}); put "
                "the images into one of the folders"
            )
    return names


def renumbered(
    found: Sequence[str], labels: NDArray[np.integer[Any]], classes: Sequence[str] | None, source: str | Path
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Labels (N,) into `found` as labels into `classes`, where those are given, and the classes that now hold.

    Raises ValueError for a class that is not among `classes`, however the accents are written.
    """
    if classes is None:
        return tuple(found), labels.astype(np.int64)
    _check_same_classes(source, found, classes)
    known = {spelled(name): label for label, name in enumerate(classes)}
    table = np.array([known[spelled(name)] for name in found], dtype=np.int64)
    return tuple(classes), table[labels]


def require_folder(folder: Path, content: str) -> None:
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; expected a folder with {content}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder with {content}")


def _check_same_classes(folder: str | Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """A validation split may lack a class, but may not have one that training does not know."""
    known = {spelled(name) for name in expected}
    unknown = sorted(name for name in found if spelled(name) not in known)
    if unknown:
        raise ValueError(
            f"{folder} has {some(unknown)}, which the training classes do not include "
            f"(training knows {some(sorted(expected))}); rename or remove"
        )


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
