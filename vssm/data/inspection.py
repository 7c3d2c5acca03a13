"""What a folder of images holds: read each file once, look for what would hurt a training."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vssm.data.image import UnreadableImage, is_turned, open_image
from vssm.data.parallel import map_ahead

__all__ = ["MIN_SIDE", "ImageFacts", "Inspection", "inspect_image", "inspect_images", "summarise"]

# A training image is decoded no smaller than its crop needs; here it is enough to find damage, so that a large JPEG
# need not be decoded in full.
MIN_SIDE = 256


@dataclass(frozen=True)
class ImageFacts:
    """One file. `error` is why it cannot be read; `size` (width, height, as stored) and the rest are then not known.

    `turned`: whether its EXIF orientation exchanges width and height.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    kind: str = ""
    digest: bytes = b""
    error: str | None = None
    turned: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = self.size
        return (height, width) if self.turned else (width, height)


def inspect_image(path: Path) -> ImageFacts:
    """Decodes a file as training would; `kind` is its format and Pillow's mode, `digest` a hash of its bytes."""
    try:
        open_image(path, min_side=MIN_SIDE)
        with Image.open(path) as image:
            size, kind = image.size, f"{image.format} {image.mode}"
            turned = is_turned(image)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").digest()[:16]
    except UnreadableImage as error:
        return ImageFacts(path, error=error.reason)
    except OSError as error:  # it was there a moment ago
        return ImageFacts(path, error=error.strerror or str(error))
    return ImageFacts(path, size, kind, digest, turned=turned)


def inspect_images(paths: Iterable[Path], threads: int | None = None) -> Iterator[ImageFacts]:
    """The facts of each, in order; by default with one thread per core."""
    threads = threads or os.cpu_count() or 1
    return map_ahead(inspect_image, paths, threads, ahead=4 * threads)


@dataclass(frozen=True)
class Inspection:
    """What is in the splits ("train", "val", ...), and what is wrong with it.

    counts: readable images per split and class
    unreadable: path and reason
    kinds: readable images per format and mode
    short_sides: the shorter side of each readable image, sorted
    leaks: files with the same bytes in more than one split
    conflicts: files with the same bytes in more than one class
    copies: how many files of one class and split have the same bytes as an earlier one
    """

    counts: dict[str, list[int]]
    unreadable: list[tuple[Path, str]]
    kinds: Counter[str]
    short_sides: list[int]
    leaks: list[list[Path]]
    conflicts: list[list[Path]]
    copies: int

    @property
    def clean(self) -> bool:
        return not (self.unreadable or self.leaks or self.conflicts)


def summarise(splits: dict[str, Sequence[tuple[Path, int]]], facts: Iterable[ImageFacts], classes: int) -> Inspection:
    """`facts` are those of the (path, label) pairs of all splits, one split after the other."""
    counts = {name: [0] * classes for name in splits}
    unreadable: list[tuple[Path, str]] = []
    kinds: Counter[str] = Counter()
    short_sides: list[int] = []
    holders: dict[bytes, list[tuple[str, int, Path]]] = defaultdict(list)
    samples = ((name, label) for name, split in splits.items() for _, label in split)
    for (name, label), found in zip(samples, facts, strict=True):
        if found.error is not None:
            unreadable.append((found.path, found.error))
            continue
        counts[name][label] += 1
        kinds[found.kind] += 1
        short_sides.append(min(found.size))
        holders[found.digest].append((name, label, found.path))
    same = [group for group in holders.values() if len(group) > 1]
    return Inspection(
        counts,
        unreadable,
        kinds,
        sorted(short_sides),
        leaks=[[path for *_, path in group] for group in same if len({name for name, *_ in group}) > 1],
        conflicts=[[path for *_, path in group] for group in same if len({label for _, label, _ in group}) > 1],
        copies=sum(len(group) - len({(name, label) for name, label, _ in group}) for group in same),
    )
