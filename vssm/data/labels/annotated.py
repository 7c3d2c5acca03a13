"""What every annotation format is read into."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vssm.data.files import printable_name
from vssm.data.image import DAMAGE, UnreadableImage, is_turned
from vssm.data.imagefolder import some
from vssm.data.rle import Polygons, Segmentation

__all__ = ["Annotated", "AnnotatedImage", "Labelled", "Lost", "box_around", "decoded", "polygon_area", "upright_size"]

Box = tuple[float, float, float, float]

# Larger text files are no annotations of one image; an image within one may take more.
MAX_TEXT = 1 << 24
MAX_JSON = 1 << 28


@dataclass
class Labelled:
    """An object: its class, its box x, y, width, height in pixels, and its segmentation where it has one.

    crowd: it stands for many objects; area: as annotated, where it is not to be that of the mask or the box
    """

    name: str
    box: Box
    segmentation: Segmentation | None = None
    crowd: bool = False
    area: float | None = None


@dataclass
class AnnotatedImage:
    """An image file and its objects.

    name: the path it gets below the folder of its split
    size: width and height for which the objects are annotated
    split: "train", "val" or "test" where the source says so
    content: the file itself, where it is within the annotations
    """

    path: Path
    name: str
    size: tuple[int, int]
    objects: list[Labelled]
    split: str | None = None
    content: bytes | None = None


class Lost:
    """What cannot be carried over: how often, and where first."""

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, str]] = {}

    def add(self, what: str, where: str | Path, count: int = 1) -> None:
        if count:
            known, first = self.counts.get(what, (0, printable_name(where)))
            self.counts[what] = known + count, first

    def lines(self) -> list[str]:
        return [f"{what}: {count} (first: {first})" for what, (count, first) in sorted(self.counts.items())]


@dataclass
class Annotated:
    """Images, the names of the classes in the order of labels, what was lost, and notes about what was assumed."""

    images: list[AnnotatedImage]
    classes: list[str]
    lost: Lost = field(default_factory=Lost)
    notes: list[str] = field(default_factory=list[str])

    def merge_classes(self, name: str) -> None:
        """Gives all objects one class."""
        if len(self.classes) > 1:
            self.notes.append(f"{len(self.classes)} classes became {name}: {some(self.classes)}")
        self.classes = [name]
        for image in self.images:
            for one in image.objects:
                one.name = name


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height as `open_image` would have them, from the head of the file. Raises UnreadableImage."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if is_turned(image) else (width, height)
    except DAMAGE as error:
        named = isinstance(error, OSError) and error.strerror
        raise UnreadableImage(path, named or "not an image, or of a kind that Pillow cannot read") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(path, "too many pixels") from None


def size_of_file(path: Path, stated: tuple[int, int] | None, source: Path, lost: Lost) -> tuple[int, int] | None:
    """The size that annotations are for: the stated one, which must be that of the upright or of the stored image; the
    upright one where none is stated. None, and lost, for a file of another size or that cannot be read."""
    try:
        size = upright_size(path)
    except UnreadableImage as error:
        lost.add("images that cannot be read, left out", f"{error}")
        return None
    if stated is None or stated in (size, size[::-1]):
        return stated or size
    lost.add(
        "images of another size than their annotations state, left out",
        f"{source}: {stated[0]} x {stated[1]}, the image is {size[0]} x {size[1]}",
    )
    return None


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """A text in UTF-8. Raises OSError; ValueError for a larger file or another encoding."""
    if path.stat().st_size > limit:
        raise ValueError(f"{printable_name(path)}: more than {limit} bytes; that is no annotation of an image")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{printable_name(path)}: not a text in UTF-8") from None


def clipped(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of a box within an image of `size`; None where that has no area."""
    x, y, width, height = box
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(size[0])), min(y + height, float(size[1]))
    if right - left <= 0 or bottom - top <= 0:
        return None
    return (
        (left, top, right - left, bottom - top) if (left, top, right, bottom) != (x, y, x + width, y + height) else box
    )


def reaches_over(box: Box, size: tuple[int, int], tolerance: float = 1.0) -> bool:
    x, y, width, height = box
    return min(x, y) < -tolerance or x + width > size[0] + tolerance or y + height > size[1] + tolerance


def box_around(polygons: Polygons) -> Box:
    x = [value for polygon in polygons for value in polygon[0::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def polygon_area(polygon: list[float]) -> float:
    """Of a polygon [x1, y1, ...] that does not cross itself."""
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x))))


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once, sorted."""
    return sorted(set(names))


def decoded(text: Any, where: str) -> bytes:
    """The bytes of a text in base64. Raises ValueError."""
    try:
        return base64.b64decode(text, validate=False)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError(f"{where}: not base64") from None
