"""Images with semantic masks in files beside them: ADE20K, Cityscapes, Pascal VOC, or plain folders."""

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from vssm._words import spelled
from vssm.data.files import image_files, printable_name
from vssm.data.image import DAMAGE, UnreadableImage, open_of_size
from vssm.data.imagefolder import require_folder, some
from vssm.data.layouts import Layout, Source
from vssm.data.mask_classes import CITYSCAPES, IGNORED, VOC, MaskClasses, ade20k_classes, read_classes
from vssm.data.split import hold_out

__all__ = ["CLASSES_FILE", "MaskTransform", "SemanticMasks", "classes_of", "read_mask"]

CLASSES_FILE = "classes.txt"
MaskTransform = Callable[[Image.Image, NDArray[np.uint8]], object]

# A mask is never stored with losses: JPEG would invent values at every border.
_SUFFIXES = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"))
_CITYSCAPES_IMAGE, _CITYSCAPES_MASK = "_leftImg8bit", "_gtFine_labelIds"


class SemanticMasks(Dataset[object]):
    """Images and their masks, sorted by name.

    Args:
        pairs: image and mask files
        folder: where the images lie; `fingerprint` does not depend on it
        classes: what the values of the masks mean
        transform: makes a sample of an RGB image and the labels (H, W), uint8 of 0..K-1 and 255 for what is ignored

    `SemanticMasks.of` finds the pairs in a folder. `dataset[i]` raises UnreadableImage for an image or a mask that
    cannot be read, for a mask of another size than its image, and for values that are no class.
    """

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], folder: Path, classes: MaskClasses, transform: MaskTransform
    ):
        self.pairs, self.folder, self.transform = list(pairs), folder, transform
        self.mask_classes = classes
        self.notes: tuple[str, ...] = ()
        self._table = classes.table()

    @classmethod
    def of(cls, layout: Layout, split: str, transform: MaskTransform, classes: MaskClasses | None = None):
        """The split "train", "val" or "test" of a layout that `find_layout` found; `classes_of(layout)` when not given.

        Raises OSError or ValueError: no such split, no images, an image without a mask or a mask without an image.
        """
        if split not in layout.splits:
            there = some(sorted(layout.splits))
            raise FileNotFoundError(
                f"{printable_name(layout.root)} has no {split} split ({layout.kind}); it has {there}"
            )
        source = layout.splits[split]
        pairs = _FIND.get(layout.kind, _same_names)(source)
        if not pairs:
            raise ValueError(f"{printable_name(source.images)} holds no images with masks")
        dataset = cls(pairs, source.images, classes or classes_of(layout), transform)
        if layout.kind == "ade20k" and dataset.classes[0] == "class 1":
            dataset.notes = (f"no objectInfo150.txt and no {CLASSES_FILE} in {layout.root}: classes have numbers only",)
        return dataset

    @property
    def classes(self) -> tuple[str, ...]:
        return self.mask_classes.names

    def class_counts(self) -> None:
        """Not known: it would take reading every mask."""

    def fingerprint(self) -> str:
        """The same for the same names in the same order, wherever the folder lies: a hash of them."""
        names = (os.fsencode(spelled(image.relative_to(self.folder).as_posix())) for image, _ in self.pairs)
        return hashlib.sha256(b"\0".join(names)).hexdigest()

    def masks_fingerprint(self) -> str:
        """The same for the same meaning of values and the same masks, as far as name, size and date tell."""
        digest = hashlib.sha256(repr(self.mask_classes).encode())
        for image, mask in self.pairs:
            found = mask.stat()
            digest.update(
                f"{image.relative_to(self.folder)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(
                    errors="surrogateescape"
                )
            )
        return digest.hexdigest()

    def with_images(self, images: Sequence[int] | NDArray[np.int64], transform: MaskTransform) -> "SemanticMasks":
        """The data set with some of its images only, by their positions in it, and another transform."""
        part = copy.copy(self)
        part.pairs, part.transform = [self.pairs[int(position)] for position in images], transform
        return part

    def hold_out(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """Positions of images to train and of images to validate, `share` of all, drawn as `vssm.data.split` does."""
        _, val, _ = hold_out([(image, 0) for image, _ in self.pairs], self.folder, share, seed)
        held = {image for image, _ in val}
        positions = range(len(self))
        return (
            [position for position in positions if self.pairs[position][0] not in held],
            [position for position in positions if self.pairs[position][0] in held],
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> object:
        """Raises UnreadableImage."""
        image, labels = self.read(position)
        return self.transform(image, labels)

    def path(self, position: int) -> Path:
        return self.pairs[position][0]

    def read(self, position: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """The RGB image and its labels (H, W), before the transform. Raises UnreadableImage."""
        image_path, mask_path = self.pairs[position]
        labels = self.labels(position)
        height, width = labels.shape
        return open_of_size(image_path, (width, height), f"its mask {printable_name(mask_path)}"), labels

    def labels(self, position: int) -> NDArray[np.uint8]:
        """The labels (H, W) of an image. Raises UnreadableImage, naming values that are no class and their pixels."""
        path = self.pairs[position][1]
        values = read_mask(path, self.mask_classes.colours is not None)
        if values.ndim == 3:
            return _labels_of_colours(path, values, self.mask_classes)
        found = self._table[values]
        if found.min(initial=0) < 0:
            wrong, counts = np.unique(values[found < 0], return_counts=True)
            listed = some([f"{value} ({count} pixels)" for value, count in zip(wrong.tolist(), counts.tolist())])
            names = self.classes
            raise UnreadableImage(
                path, f"the mask has values that are none of the {len(names)} classes ({some(names, 3)}): {listed}"
            )
        return found.astype(np.uint8)


def classes_of(layout: Layout, path: Path | None = None, reduce_zero_label: bool | None = None) -> MaskClasses:
    """What the masks of a layout mean: `path`, or classes.txt at its root, or what the data set defines.

    `reduce_zero_label`: the value 0 is ignored and the named classes begin with the value 1; as in ADE20K, and for it
    the default. It is for names without values.

    Raises OSError or ValueError where the file cannot be read, and where there is none.
    """
    own = layout.root / CLASSES_FILE
    reduced = layout.kind == "ade20k" if reduce_zero_label is None else reduce_zero_label
    if path is not None or own.is_file():
        found = read_classes(path or own)
        if not reduced:
            return found
        if found.colours is None and set(found.values) - {IGNORED} == set(range(len(found.names))):
            return MaskClasses.numbered(found.names, first=1, ignored=(0, IGNORED))
        if reduce_zero_label:
            raise ValueError(f"{printable_name(path or own)} has values of its own; leave out reduce_zero_label")
        return found
    if layout.kind == "ade20k":
        return ade20k_classes(layout.root)
    if layout.kind in _KNOWN:
        return _KNOWN[layout.kind]
    raise FileNotFoundError(
        f"{printable_name(own)} does not exist; it names the classes of the masks, one per line: NAME (its value is "
        "the number of the line, from 0), VALUE,NAME or R G B,NAME"
    )


_KNOWN = {"voc": VOC, "cityscapes": CITYSCAPES}


def read_mask(path: Path, coloured: bool = False) -> NDArray[Any]:
    """The values of a mask (H, W), as they are stored: indices of a palette, or integers of 1 to 16 bits.

    `coloured` also allows RGB: then (H, W, 3), of a palette too. Raises UnreadableImage for anything else.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableImage(path, "empty file")
        with Image.open(path) as image:
            mode, kind = image.mode, image.format
            if kind in ("JPEG", "WEBP"):
                raise UnreadableImage(path, f"a mask in {kind}, which invents values at every border; use PNG")
            if coloured and mode in ("P", "RGB", "RGBA"):
                return np.asarray(image.convert("RGB"))
            if mode in ("RGB", "RGBA", "LA", "PA", "CMYK", "F"):
                raise UnreadableImage(
                    path,
                    f"a mask must have one integer per pixel (8 or 16 bits, or a palette), this one is {mode}; for "
                    f"masks in RGB name the colours in {CLASSES_FILE}, a class per line: R G B,NAME",
                )
            highest = _highest_value(image)
            values = np.asarray(image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(path, "not an image, or of a kind that Pillow cannot read") from None
    except (Image.DecompressionBombError, MemoryError):
        raise UnreadableImage(path, "too many pixels") from None
    except DAMAGE as error:
        named = isinstance(error, OSError) and error.strerror
        raise UnreadableImage(path, named or f"damaged image ({error})") from None
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise UnreadableImage(path, f"a mask with values from {low} to {high}; they must be in 0..65535")
    if highest is not None:
        values = np.round(values * (highest / (255 if values.dtype == np.uint8 else 65535))).astype(np.uint16)
    return values.astype(np.uint16, copy=False) if values.dtype != np.uint8 else values


def _highest_value(image: Image.Image) -> int | None:
    """The highest value that a file stores, where Pillow scales its values to 255 or 65535: grey of 2 or 4 bits, and
    PGM with another maximum. None where values come as they are stored."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments: Any = tiles[0][3] if tiles else ""
    listed = cast(tuple[Any, ...], arguments) if isinstance(arguments, tuple) else (arguments,)
    if image.format == "PPM":
        return listed[-1] if isinstance(listed[-1], int) else None
    return {"L;2": 3, "L;4": 15}.get(str(listed[0])[:3])


def _labels_of_colours(path: Path, colours: NDArray[np.uint8], classes: MaskClasses) -> NDArray[np.uint8]:
    assert classes.colours is not None
    packed = colours.astype(np.int64) @ np.array([65536, 256, 1])
    known = {(red * 256 + green) * 256 + blue: label for (red, green, blue), label in classes.colours.items()}
    values, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    wrong = [
        f"{value >> 16} {value >> 8 & 255} {value & 255} ({count} pixels)"
        for value, count in zip(values.tolist(), counts.tolist())
        if value not in known
    ]
    if wrong:
        raise UnreadableImage(path, f"the mask has colours that are no class: {some(wrong)}")
    labels = np.array([known[value] for value in values.tolist()], np.uint8)
    return labels[inverse].reshape(packed.shape)


def _same_names(source: Source) -> list[tuple[Path, Path]]:
    """Images and masks with the same path below their folders, but for the suffix."""
    assert source.annotations is not None
    return _paired(source, _by_name(source.images, ""), _by_name(source.annotations, "", _SUFFIXES))


def _cityscapes(source: Source) -> list[tuple[Path, Path]]:
    assert source.annotations is not None
    images = _by_name(source.images, _CITYSCAPES_IMAGE)
    return _paired(source, images, _by_name(source.annotations, _CITYSCAPES_MASK, _SUFFIXES))


def _listed(source: Source) -> list[tuple[Path, Path]]:
    assert source.annotations is not None and source.listed is not None
    names = source.listed.read_text(encoding="utf-8").split()
    images = {path.stem: path for path in image_files(source.images)}
    masks = {path.stem: path for path in image_files(source.annotations)}
    for kind, found, folder in (("image", images, source.images), ("mask", masks, source.annotations)):
        missing = [name for name in names if name not in found]
        if missing:
            raise FileNotFoundError(
                f"{printable_name(source.listed)}: {len(missing)} of {len(names)} names have no {kind} in "
                f"{printable_name(folder)}: {some(missing)}"
            )
    return [(images[name], masks[name]) for name in names]


_FIND: dict[str, Callable[[Source], list[tuple[Path, Path]]]] = {"cityscapes": _cityscapes, "voc": _listed}


def _by_name(folder: Path, ending: str, suffixes: frozenset[str] | None = None) -> dict[str, Path]:
    """Image files by their path below `folder`, without suffix and `ending`; others than with `ending` are left out."""
    require_folder(folder, "images or masks")
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if not path.stem.endswith(ending) or (suffixes is not None and path.suffix.lower() not in suffixes):
            continue
        name = spelled(path.relative_to(folder).with_name(path.stem.removesuffix(ending)).as_posix())
        if name in found:
            raise ValueError(
                f"{printable_name(folder)} has {found[name].name} and {path.name}; only one file of a name can be used"
            )
        found[name] = path
    return found


def _paired(source: Source, images: dict[str, Path], masks: dict[str, Path]) -> list[tuple[Path, Path]]:
    for kind, of, found, other, folder in (
        ("images", "mask", images, masks, source.annotations),
        ("masks", "image", masks, images, source.images),
    ):
        alone = [name for name in found if name not in other]
        if alone:
            raise FileNotFoundError(
                f"{len(alone)} of {len(found)} {kind} have no {of} of the same name in {printable_name(str(folder))}: "
                f"{some(alone)}; masks must be PNG, TIFF, BMP, GIF or PGM"
            )
    return [(images[name], masks[name]) for name in sorted(images)]
