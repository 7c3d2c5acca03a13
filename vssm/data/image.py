"""From an image file to 8-bit pixels: grey or RGB, upright, on white.

Whatever a file holds, training and prediction read it through `open_image` and so agree on its pixels.
"""

import stat
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

__all__ = [
    "DAMAGE",
    "GREY_LEVELS",
    "MODES",
    "UPRIGHT",
    "StoredImage",
    "UnreadableImage",
    "as_read",
    "is_turned",
    "open_image",
    "open_of_size",
    "read_image",
]

MODES = {1: "L", 3: "RGB"}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's names of grey PNGs of 1, 2 and 4 bits, and their highest level.
GREY_LEVELS = {"1": 1, "L;2": 3, "L;4": 15}
# What is read from strangers: readers of Pillow that start no other program (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# How Pillow reports damage. Beside its own OSError these are what its readers raise on content they did not expect.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, struct.error)


class UnreadableImage(ValueError):
    """An image file that cannot be used, and why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = Path(path), " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class StoredImage:
    """An image file inside a larger one. path: its name, below that of the larger one. content: gives its bytes, or
    raises UnreadableImage."""

    path: Path
    content: Callable[[], bytes]

    @property
    def stem(self) -> str:
        return self.path.stem


def open_image(
    path: str | Path | StoredImage, channels: int = 3, min_side: int | None = None, upright: bool = True
) -> Image.Image:
    """The first frame or page of an image file as grey (channels=1) or RGB (channels=3), turned as its EXIF tag says.

    Transparent pixels are laid on white. 16-bit values keep their high byte; floats must be in 0..1. Colour profiles
    are left alone. `min_side` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep at
    least that many pixels: less time and memory for a large photo (`benchmarks/input.py --size 4032x3024`). `upright`
    false leaves an image file as it is stored. A StoredImage is read by `read_image`.

    Raises UnreadableImage: no such file, not a regular file, not an image, damaged, cut off, of values without an
    agreed meaning, or of more pixels than twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    _check_channels(channels)
    if isinstance(path, StoredImage):
        return read_image(path.content(), str(path.path), channels, min_side)
    with _readable(path):
        return as_read(_decode(path, min_side, upright), channels, path)


def read_image(
    content: bytes, name: str, channels: int = 3, min_side: int | None = None, max_pixels: int | None = None
) -> Image.Image:
    """`open_image` of a file in memory that may be anybody's: of FORMATS only, and of at most `max_pixels` pixels.

    `name` is for messages. Raises UnreadableImage as `open_image`; a file of too many pixels is not decoded.
    """
    _check_channels(channels)
    with _readable(name):
        if not content:
            raise UnreadableImage(name, "empty file")
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise UnreadableImage(name, f"{size}, more than {max_pixels / 1e6:g} million; make it smaller")
            return as_read(_loaded(image, min_side, upright=True), channels, name)


def _check_channels(channels: int) -> None:
    if channels not in MODES:
        raise ValueError(f"image files are read with 1 or 3 channels, not {channels}")


@contextmanager
def _readable(path: str | Path) -> Generator[None, None, None]:
    """Whatever Pillow raises inside becomes one UnreadableImage with the reason."""
    try:
        yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(path, "not an image, or of a kind that Pillow cannot read") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImage(path, f"more than {limit} pixels; make it smaller") from None
    except MemoryError:
        raise UnreadableImage(path, "too large for the memory of this machine") from None
    except DAMAGE as error:
        named = isinstance(error, OSError) and error.strerror
        raise UnreadableImage(path, named or f"damaged image ({error})") from None


def open_of_size(path: str | Path, size: tuple[int, int], source: str, channels: int = 3) -> Image.Image:
    """`open_image` of a file whose annotations, in `source`, are for an image of `size` (width, height).

    It is upright, unless only the image as it is stored has that size: then the annotations are of the latter.
    Raises UnreadableImage as `open_image`, and for a file of another size.
    """
    image = open_image(path, channels)
    if image.size == size:
        return image
    if image.size == size[::-1]:
        stored = open_image(path, channels, upright=False)
        if stored.size == size:
            return stored
    raise UnreadableImage(
        path, f"{image.width} x {image.height} pixels, but {size[0]} x {size[1]} in {source} (width x height)"
    )


def as_read(image: Image.Image, channels: int, name: str | Path) -> Image.Image:
    """An image in memory as `open_image` gives that of a file; it is taken as upright. `name` is for its messages."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image, name)
    return _convert(image, MODES[channels])


def _decode(path: str | Path, min_side: int | None, upright: bool) -> Image.Image:
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):  # opening a pipe or a device may wait for ever
        raise UnreadableImage(path, "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file")
    if found.st_size == 0:
        raise UnreadableImage(path, "empty file")
    with Image.open(path) as image:
        return _loaded(image, min_side, upright)


def _loaded(image: Image.Image, min_side: int | None, upright: bool) -> Image.Image:
    """The pixels of an opened file, as `open_image` describes them."""
    if min_side is not None:
        image.draft(None, (min_side, min_side))
    _scale_transparent_colour(image)
    image.load()
    turn = UPRIGHT.get(_orientation(image)) if upright else None
    return image if turn is None else image.transpose(turn)


def _scale_transparent_colour(image: Image.Image) -> None:
    """The one colour of a PNG that is transparent (its tRNS chunk), on the scale that Pillow decodes the pixels to.

    Pillow keeps the high bytes of colours of 16 bits, so that two of them that differ in the low bytes are one.
    """
    colour = image.info.get("transparency")
    tiles: list[Any] = getattr(image, "tile", [])  # of an ImageFile
    if image.format != "PNG" or not tiles:
        return
    raw_mode = tiles[0][3]
    if isinstance(colour, int) and raw_mode in GREY_LEVELS:
        levels = GREY_LEVELS[raw_mode]
        image.info["transparency"] = (colour & levels) * (255 // levels)
    elif isinstance(colour, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in cast(tuple[int, ...], colour))


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation exchanges width and height."""
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image: Image.Image) -> int:
    """The EXIF tag, 1 when there is none. Damaged metadata does not make the pixels unusable."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1


def _eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """Grey of 16 or 32 bits or of floats as 8 bits, by the range of the type and never by that of the image.

    The level that is transparent is laid on white here, while it still differs from its neighbours.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also for NaN
            raise UnreadableImage(path, f"float values from {low:g} to {high:g}; they must be in 0..1")
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    if low < 0 or high > 65535:
        raise UnreadableImage(path, f"32-bit values from {low} to {high}; they must be in 0..65535")
    scaled = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image.getchannel("A"))
        image = page
    return image if image.mode == mode else image.convert(mode)
