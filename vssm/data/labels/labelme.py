"""LabelMe: a json file per image with polygons, rectangles, circles and masks."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from vssm.data import rle
from vssm.data.files import has_image_suffix, image_files, printable_name
from vssm.data.image import DAMAGE
from vssm.data.labels.annotated import (
    MAX_JSON,
    Annotated,
    AnnotatedImage,
    Labelled,
    Lost,
    box_around,
    clipped,
    decoded,
    in_order,
    polygon_area,
    reaches_over,
    read_text,
    size_of_file,
)

__all__ = ["holds", "read"]

# Corners of the polygon that stands for a circle: its area is right to 0.2 %.
_CORNERS = 64


def holds(source: Path) -> bool:
    """Whether one of the json files has shapes."""
    return any(b'"shapes"' in _head(path) for path in _json_files(source))


def read(source: Path) -> Annotated:
    """A folder of json files beside images. Shapes with one label and one group_id are one object.

    Raises OSError; ValueError naming file and line, or shape.
    """
    annotated = Annotated([], [])
    used: set[Path] = set()
    for path in _json_files(source):
        plain = _read_json(path)
        if not isinstance(plain, dict) or "shapes" not in plain:
            annotated.lost.add("json files without shapes", path)
            continue
        file = cast(dict[str, Any], plain)
        image, content = _image(path, file)
        if image is None:
            annotated.lost.add("annotation files of no image, left out", path)
            continue
        used.add(image)
        size = _size(image, content, file, path, annotated.lost)
        if size is None:
            continue
        lost = annotated.lost
        lost.add("flags of images", path, bool(any(cast(dict[str, Any], file.get("flags") or {}).values())))
        objects = list(_objects(file["shapes"], size, path, lost))
        name = path.with_name(image.name).relative_to(source).as_posix()
        annotated.images.append(AnnotatedImage(image, name, size, objects, content=content))
    without = [path for path in image_files(source) if path not in used]
    annotated.lost.add("images without an annotation file, left out", without[0] if without else source, len(without))
    annotated.classes = in_order(one.name for image in annotated.images for one in image.objects)
    return annotated


def _objects(shapes: Any, size: tuple[int, int], path: Path, lost: Lost) -> Iterator[Labelled]:
    """Shapes of a group are joined into the first of them."""
    if not isinstance(shapes, list):
        raise ValueError(f"{printable_name(path)}: shapes must be a list, got {type(shapes).__name__}")
    groups: dict[tuple[str, Any], list[rle.Segmentation]] = {}
    for number, entry in enumerate(cast(list[Any], shapes)):
        where = f"{printable_name(path)}: shape {number}"
        if not isinstance(entry, dict) or not isinstance(cast(dict[str, Any], entry).get("label"), str):
            raise ValueError(f"{where} has no label")
        shape = cast(dict[str, Any], entry)
        found = _segmentation(shape, size, where, lost)
        if found is None:
            continue
        lost.add("flags of shapes", where, bool(any(cast(dict[str, Any], shape.get("flags") or {}).values())))
        lost.add("descriptions of shapes", where, bool(shape.get("description")))
        lost.add("objects with attributes", where, bool(shape.get("attributes")))
        group = shape.get("group_id")
        key = (shape["label"], ("alone", number) if group is None else group)
        groups.setdefault(key, []).append(found)
    for (label, _), parts in groups.items():
        one = _joined(parts, size)
        whole = rle.box(one) if isinstance(one, dict) else box_around(one)
        box = clipped(whole, size)
        if box is None:
            lost.add("objects without an area within their image, left out", path)
            continue
        lost.add("shapes that reach over the border of their image, cut off", path, reaches_over(whole, size))
        yield Labelled(label, box, one)


def _segmentation(shape: dict[str, Any], size: tuple[int, int], where: str, lost: Lost) -> rle.Segmentation | None:
    """Polygons or an RLE; None, and lost, for a shape that has no area."""
    kind = str(shape.get("shape_type") or "polygon")
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        lost.add(f"shapes of type {kind}, left out", where)
        return None
    points = _points(shape.get("points"), where)
    if len(points) < (3 if kind == "polygon" else 2):
        raise ValueError(f"{where} ({kind}) has {len(points)} points")
    if kind == "mask":
        return _mask(shape, points, size, where)
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        radius = math.dist(points[0], edge)
        angles = [2 * math.pi * corner / _CORNERS for corner in range(_CORNERS)]
        points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    elif kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    polygon = [round(value, 3) for point in points for value in point]
    if not polygon_area(polygon):
        lost.add("objects without an area within their image, left out", where)
        return None
    return [polygon]


def _points(points: Any, where: str) -> list[tuple[float, float]]:
    try:
        found = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError):
        raise ValueError(f"{where}: points must be a list of [x, y], got {points!r:.60}") from None
    if not all(abs(value) < 1e7 for point in found for value in point):  # also NaN
        raise ValueError(f"{where}: points that are not finite, or far outside of any image")
    return found


def _mask(shape: dict[str, Any], points: list[tuple[float, float]], size: tuple[int, int], where: str) -> rle.Rle:
    """A PNG in base64 of what is in the box of the two points."""
    try:
        with Image.open(io.BytesIO(decoded(shape.get("mask"), f"{where}: its mask"))) as image:
            part = np.asarray(image) != 0
    except DAMAGE as error:
        raise ValueError(f"{where}: its mask is not an image ({error})") from None
    left, top = (round(value) for value in points[0])
    height, width = size[1], size[0]
    if part.ndim != 2 or left < 0 or top < 0 or left + part.shape[1] > width or top + part.shape[0] > height:
        raise ValueError(f"{where}: a mask of shape {part.shape} at {left}, {top} does not fit into {width} x {height}")
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return rle.encode(mask)


def _joined(parts: list[rle.Segmentation], size: tuple[int, int]) -> rle.Segmentation:
    if all(isinstance(part, list) for part in parts):
        return [polygon for part in parts for polygon in cast(rle.Polygons, part)]
    if len(parts) == 1:
        return parts[0]
    mask = np.zeros(size[::-1], np.bool_)
    for part in parts:
        mask |= rle.decode(rle.of_segmentation(part, size[1], size[0]))
    return rle.encode(mask)


def _image(path: Path, file: dict[str, Any]) -> tuple[Path | None, bytes | None]:
    """The image file that `imagePath` names, or of the json's own name; else the one within the json, with a name."""
    stated = str(file.get("imagePath") or "").replace("\\", "/")
    for candidate in (path.parent / stated, path.parent / Path(stated).name) if stated else ():
        if candidate.is_file() and has_image_suffix(candidate.name):
            return candidate, None
    for candidate in sorted(path.parent.glob(f"{_escaped(path.stem)}.*")):
        if has_image_suffix(candidate.name):
            return candidate, None
    if not file.get("imageData"):
        return None, None
    content = decoded(file["imageData"], f"{printable_name(path)}: imageData")
    try:
        with Image.open(io.BytesIO(content)) as image:
            suffix = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}[str(image.format)]
    except (*DAMAGE, KeyError):
        raise ValueError(f"{printable_name(path)}: imageData is not a JPEG, PNG, TIFF or WebP image") from None
    return path.with_suffix(suffix), content


def _size(image: Path, content: bytes | None, file: dict[str, Any], path: Path, lost: Lost) -> tuple[int, int] | None:
    sides = file.get("imageWidth"), file.get("imageHeight")
    stated = None
    if isinstance(sides[0], int) and isinstance(sides[1], int) and sides[0] > 0 and sides[1] > 0:
        stated = sides[0], sides[1]
    if content is None:
        return size_of_file(image, stated, path, lost)
    with Image.open(io.BytesIO(content)) as opened:
        return stated if stated in (opened.size, opened.size[::-1]) else opened.size


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path, MAX_JSON))
    except json.JSONDecodeError as error:
        raise ValueError(f"{printable_name(path)}, line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{printable_name(path)}: nested too deeply") from None


def _head(path: Path) -> bytes:
    """Enough to see what a json is; LabelMe writes the shapes before the image."""
    with path.open("rb") as file:
        return file.read(4096)


def _json_files(source: Path) -> list[Path]:
    return sorted(source.rglob("*.json")) if source.is_dir() else []


def _escaped(stem: str) -> str:
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in stem)
