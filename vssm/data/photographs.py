"""Photographs that come with scikit-image or scikit-learn: something to look at without any images of one's own."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["photographs"]

# Colour photographs; licences: https://github.com/scikit-image/scikit-image/blob/main/src/skimage/data/README.txt
_SCIKIT_IMAGE = (
    "chelsea.png",
    "astronaut.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "ihc.png",
)
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")


def photographs(count: int | None = None) -> list[Path]:
    """Files of the first `count` photographs, or of all: at most 10. ValueError when neither package is installed."""
    folders = (("skimage", "data", _SCIKIT_IMAGE), ("sklearn", "datasets/images", _SCIKIT_LEARN))
    found: list[Path] = []
    for package, folder, names in folders:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found += [file for name in names if (file := Path(spec.origin).parent / folder / name).is_file()]
    if not found:
        raise ValueError("no images named, and scikit-image, whose photographs are shown then, is not installed")
    return found if count is None else found[:count]
