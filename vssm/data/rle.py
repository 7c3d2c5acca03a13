"""COCO's run-length encoding of masks, as pycocotools has it; the work is done by hotcoco.

A mask is a bool array (H, W). An Rle is what a COCO json holds: `{"size": [H, W], "counts": ...}`, where `counts` is a
string (compressed) or a list of integers (run lengths in column order that start with zeros). Functions here return
the compressed form with a `str`, which json can write.
"""

from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mask", "Polygons", "Rle", "Segmentation", "area", "box", "check", "decode", "encode", "of_segmentation"]

Mask = NDArray[np.bool_]
Polygons = list[list[float]]


class Rle(TypedDict):
    """size: [height, width]; counts: the compressed string, or run lengths"""

    size: list[int]
    counts: str | list[int]


Segmentation = Polygons | Rle


def encode(mask: Mask) -> Rle:
    """The RLE of a mask (H, W), compressed."""
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"a mask must be bool of shape (H, W), got {mask.dtype} of shape {mask.shape}")
    return _as_text(_hotcoco().encode(mask))


def decode(rle: Rle) -> Mask:
    """The mask (H, W) of an RLE, compressed or not. Raises ValueError as `check`."""
    return cast(Mask, _hotcoco().decode(_compressed(rle)).astype(np.bool_))


def area(rle: Rle) -> int:
    """Pixels of the mask. Raises ValueError as `check`."""
    return int(_hotcoco().area(_compressed(rle)))


def box(rle: Rle) -> tuple[float, float, float, float]:
    """COCO's box [x, y, width, height] around the mask; zeros for an empty one. Raises ValueError as `check`."""
    x, y, width, height = _hotcoco().to_bbox(_compressed(rle)).tolist()
    return x, y, width, height


def of_segmentation(segmentation: Segmentation, height: int, width: int) -> Rle:
    """The RLE of what a COCO annotation has as `segmentation`: polygons, whose union it is, or an RLE.

    Polygons are `[x1, y1, x2, y2, ...]` in pixels, with the pixel (0, 0) from 0 to 1; what lies outside of the image is
    cut off. Pixels are those that pycocotools sets. Raises ValueError: as `check`, or a polygon of less than 3 points.
    """
    check(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _as_text(_compressed(segmentation))
    mask = _hotcoco()
    drawn = [mask.fr_poly([float(value) for value in polygon], height, width) for polygon in segmentation]
    return _as_text(drawn[0] if len(drawn) == 1 else mask.merge(drawn))


def check(segmentation: Any, height: int, width: int) -> None:
    """Raises ValueError, with the reason only, for what is not polygons or an RLE of an image of this size."""
    if isinstance(segmentation, list):
        _check_polygons(cast(list[Any], segmentation))
    elif isinstance(segmentation, dict):
        rle = cast(dict[str, Any], segmentation)
        if rle.get("size") != [height, width]:
            raise ValueError(f"an RLE of size {rle.get('size')}, but the image is {[height, width]} (height, width)")
        _runs(cast(Rle, rle))
    else:
        raise ValueError(f"a segmentation must be a list of polygons or an RLE, got {type(segmentation).__name__}")


def _check_polygons(polygons: list[Any]) -> None:
    if not polygons:
        raise ValueError("a segmentation without polygons")
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise ValueError(f"a polygon must be a list [x1, y1, x2, y2, ...], got {polygon!r:.40}")
        values = cast(list[Any], polygon)
        if len(values) < 6 or len(values) % 2:
            raise ValueError(f"a polygon of {len(values)} values; x and y of at least 3 points are needed")
        for value in values:
            if not isinstance(value, int | float) or not abs(value) < 1e7:
                raise ValueError(f"a polygon with the coordinate {value!r:.40}")


def _compressed(rle: Rle) -> Rle:
    runs = _runs(rle)
    if isinstance(rle["counts"], list):
        height, width = rle["size"]
        return cast(Rle, _hotcoco().frPyObjects({"size": [height, width], "counts": runs}, height, width))
    return rle


def _runs(rle: Rle) -> list[int]:
    """The run lengths. Raises ValueError where they are not those of an image of this size."""
    size: Any = rle.get("size")
    counts: Any = rle.get("counts")
    if not isinstance(size, list) or len(cast(list[Any], size)) != 2 or not all(map(_is_count, cast(list[Any], size))):
        raise ValueError(f"an RLE must have a size [height, width], got {size!r:.40}")
    if isinstance(counts, str | bytes):
        runs = _decompress(counts.encode("utf-8", "replace") if isinstance(counts, str) else counts)
    elif isinstance(counts, list):
        runs = cast(list[int], counts)
    else:
        raise ValueError(f"the counts of an RLE must be a string or a list, got {type(counts).__name__}")
    if not all(map(_is_count, runs)):
        raise ValueError("an RLE with run lengths that are no counts; the data are damaged")
    height, width = cast(list[int], size)
    if sum(runs) != height * width:
        raise ValueError(f"an RLE of {sum(runs)} pixels for a size of {height} x {width} = {height * width}")
    return runs


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _decompress(text: bytes) -> list[int]:
    """COCO's text: six bits per character from '0' on, five of them data, least first; from the third run on a value is
    the difference to the run two before."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = character - 48
        if not 0 <= code < 64 or shift > 35:
            raise ValueError("the counts of an RLE hold characters that do not belong there; the data are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("the counts of an RLE end in the middle of a value; the data are damaged")
    return runs


def _as_text(rle: Any) -> Rle:
    counts = rle["counts"]
    height, width = rle["size"]
    return Rle(size=[int(height), int(width)], counts=counts.decode("ascii") if isinstance(counts, bytes) else counts)


def _hotcoco() -> Any:
    """Imported when needed: it belongs to the training extra, and reading boxes does not take it."""
    from hotcoco import mask  # pyright: ignore[reportMissingModuleSource]

    return mask
