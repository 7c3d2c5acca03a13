"""Cutting large images into tiles, and their objects with them."""

from collections.abc import Iterator
from dataclasses import dataclass

from vssm.data import rle
from vssm.data.labels.annotated import Box, Labelled, box_around, polygon_area

__all__ = ["Tiling", "Window"]


@dataclass(frozen=True)
class Window:
    """A part of an image, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of `size` x `size` pixels that overlap by `overlap` pixels, the last ones at the border by more.

    Of an object, at least the share `visible` of its area must be in a tile to be among the objects of that tile.
    """

    size: int
    overlap: int = 0
    visible: float = 0.3

    def windows(self, width: int, height: int) -> Iterator[Window]:
        """Row by row; an image of at most `size` in a direction is not cut in it."""
        for y in _starts(height, self.size, self.overlap):
            for x in _starts(width, self.size, self.overlap):
                yield Window(x, y, min(self.size, width), min(self.size, height))

    def cut(self, one: Labelled, window: Window) -> Labelled | None:
        """The object in a window, in the window's coordinates; None where too little of it is there. Of a crowd, in
        which no detection counts, every part is kept."""
        segmentation, visible = one.segmentation, 0.0 if one.crowd else self.visible
        if segmentation is None:
            box = _cut_box(one.box, window)
            share = 0.0 if box is None else box[2] * box[3] / (one.box[2] * one.box[3])
            return Labelled(one.name, box, crowd=one.crowd) if box and share >= visible else None
        if _cut_box(one.box, window) is None:
            return None
        if isinstance(segmentation, dict):
            mask = rle.decode(segmentation)
            part = mask[window.y : window.y + window.height, window.x : window.x + window.width]
            share = part.sum() / max(mask.sum(), 1)
            encoded = rle.encode(part)
            found = Labelled(one.name, rle.box(encoded), encoded, one.crowd)
        else:
            polygons = [cut for polygon in segmentation if len(cut := _cut_polygon(polygon, window)) >= 6]
            polygons = [polygon for polygon in polygons if polygon_area(polygon) > 0]
            share = sum(map(polygon_area, polygons)) / max(sum(map(polygon_area, segmentation)), 1e-9)
            found = Labelled(one.name, box_around(polygons), polygons, one.crowd) if polygons else one
        return found if share >= max(visible, 1e-9) else None


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    count = -(-(length - size) // (size - overlap)) + 1
    return [min(number * (size - overlap), length - size) for number in range(count)]


def _cut_box(box: Box, window: Window) -> Box | None:
    x, y, width, height = box
    left, top = max(x - window.x, 0.0), max(y - window.y, 0.0)
    right, bottom = min(x + width - window.x, float(window.width)), min(y + height - window.y, float(window.height))
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def _cut_polygon(polygon: list[float], window: Window) -> list[float]:
    """Sutherland and Hodgman (1974): cut at one side of the window after the other."""
    points = [(x - window.x, y - window.y) for x, y in zip(polygon[0::2], polygon[1::2], strict=True)]
    for axis, limit, sign in ((0, 0, 1), (0, window.width, -1), (1, 0, 1), (1, window.height, -1)):
        kept: list[tuple[float, float]] = []
        for before, point in zip(points[-1:] + points[:-1], points):
            inside = sign * (point[axis] - limit) >= 0
            if inside != (sign * (before[axis] - limit) >= 0):
                share = (limit - before[axis]) / (point[axis] - before[axis])
                crossing = [one + share * (other - one) for one, other in zip(before, point)]
                crossing[axis] = float(limit)
                kept.append((crossing[0], crossing[1]))
            if inside:
                kept.append(point)
        points = kept
    return [round(value, 3) for point in points for value in point]
