"""Pascal VOC: an xml file per image with boxes in pixels."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from vssm.data.files import image_files, printable_name
from vssm.data.labels.annotated import (
    Annotated,
    AnnotatedImage,
    Labelled,
    Lost,
    clipped,
    in_order,
    reaches_over,
    read_text,
    size_of_file,
)
from vssm.data.labels.xml import read_xml

__all__ = ["holds", "read"]

# Marks of an object that COCO json has no field for, and what they are called.
_MARKS = {
    "difficult": "marks of difficult objects",
    "truncated": "marks of truncated objects",
    "occluded": "marks of occluded objects",
}
_OTHERS = {
    "part": "parts of objects",
    "attributes": "objects with attributes",
    "polygon": "polygons of objects",
    "segm": "polygons of objects",
    "actions": "objects with actions",
}


def holds(source: Path) -> bool:
    return any(True for _ in _xml_files(source))


def read(source: Path, origin: int | None = None) -> Annotated:
    """A folder with Annotations/*.xml and JPEGImages/ (and ImageSets/Main/train.txt, ...), or xml files beside images.

    `origin` is the coordinate of the first pixel: 1, where boxes include their last pixel as in Pascal VOC itself, or
    0, where they end at its edge. When not given, it is 0 if that value occurs in any box, and 1 else.

    Raises OSError; ValueError naming file and line or object.
    """
    annotated = Annotated([], [])
    files = list(_xml_files(source))
    roots = [(path, root) for path in files if (root := read_xml(path)).tag == "annotation"]
    annotated.lost.add("xml files that are no annotations", source, len(files) - len(roots))
    corners = {path: list(_objects(root, path, annotated.lost)) for path, root in roots}
    if origin is None:
        origin = 1 if all(min(box) > 0 for boxes in corners.values() for _, box in boxes) else 0
        meaning = "boxes include their last pixel, as in Pascal VOC" if origin else "a box has the value 0"
        annotated.notes.append(f"coordinates are taken to begin at {origin}: {meaning} (--origin)")
    splits = _splits(source)
    finder = _Images(source)
    for path, root in roots:
        image = finder.find(path, (root.findtext("filename") or "").strip())
        if image is None:
            annotated.lost.add("annotation files of no image, left out", path)
            continue
        finder.used.add(image)
        if splits and path.stem not in splits:
            annotated.lost.add("annotation files in no list of ImageSets/Main, left out", path)
            continue
        size = size_of_file(image, _stated(root), path, annotated.lost)
        if size is None:
            continue
        objects = list(_placed(corners[path], origin, size, path, annotated.lost))
        name = image.relative_to(finder.folder).as_posix() if image.is_relative_to(finder.folder) else image.name
        annotated.images.append(AnnotatedImage(image, name, size, objects, splits.get(path.stem)))
        if root.findtext("segmented", "0").strip() == "1":
            annotated.lost.add("images with masks in SegmentationObject", path)
    annotated.lost.add("images without an annotation file, left out", source, finder.unused())
    annotated.classes = in_order(one.name for image in annotated.images for one in image.objects)
    return annotated


def _objects(root: Element, path: Path, lost: Lost) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
    """Name and corners of each object, as the file has them."""
    for number, entry in enumerate(root.findall("object")):
        where = f"{printable_name(path)}: object {number}"
        name = (entry.findtext("name") or "").strip()
        box = entry.find("bndbox")
        if not name:
            raise ValueError(f"{where} has no name")
        if box is None:
            lost.add("objects without a bndbox, left out", where)
            continue
        corners: list[float] = []
        for side in ("xmin", "ymin", "xmax", "ymax"):
            text = (box.findtext(side) or "").strip()
            try:
                corners.append(float(text))
            except ValueError:
                raise ValueError(f"{where} ({name}) has the {side} {text!r}, not a number") from None
        if not all(abs(value) < 1e9 for value in corners):  # also NaN
            raise ValueError(f"{where} ({name}) has the box {corners}; expected pixels")
        for tag, what in _MARKS.items():
            lost.add(what, where, (entry.findtext(tag) or "0").strip().lower() in ("1", "true"))
        for tag, what in _OTHERS.items():
            lost.add(what, where, entry.find(tag) is not None)
        lost.add("poses of objects", where, (entry.findtext("pose") or "").strip().lower() not in ("", "unspecified"))
        yield name, (corners[0], corners[1], corners[2], corners[3])


def _placed(
    corners: list[tuple[str, tuple[float, float, float, float]]],
    origin: int,
    size: tuple[int, int],
    path: Path,
    lost: Lost,
) -> Iterator[Labelled]:
    for number, (name, (left, top, right, bottom)) in enumerate(corners):
        where = f"{printable_name(path)}: object {number}"
        if right < left or bottom < top:
            lost.add("boxes that end before they begin, left out", where)
            continue
        whole = (left - origin, top - origin, right - left + origin, bottom - top + origin)
        box = clipped(whole, size)
        if box is None:
            lost.add("objects without an area within their image, left out", where)
            continue
        lost.add("boxes that reach over the border of their image, cut off", where, reaches_over(whole, size))
        yield Labelled(name, box)


def _stated(root: Element) -> tuple[int, int] | None:
    """Width and height; tools that do not know them write 0."""
    sides: list[int] = []
    for side in ("width", "height"):
        text = (root.findtext(f"size/{side}") or "0").strip()
        try:
            sides.append(int(float(text)))
        except (ValueError, OverflowError):
            return None
    return (sides[0], sides[1]) if min(sides) > 0 else None


def _splits(source: Path) -> dict[str, str]:
    """The split of each name in ImageSets/Main; empty where there are no lists."""
    found: dict[str, str] = {}
    for split in ("train", "val", "test"):
        path = source / "ImageSets" / "Main" / f"{split}.txt"
        if path.is_file():
            for line in read_text(path).splitlines():
                if line.strip() and found.setdefault(line.split()[0], split) != split:
                    raise ValueError(
                        f"{printable_name(path)}: {line.split()[0]} is also in the list {found[line.split()[0]]}"
                    )
    return found


class _Images:
    """Finds the image of an annotation file: of the name that it states, or of its own."""

    def __init__(self, source: Path):
        folders = [source / name for name in ("JPEGImages", "images") if (source / name).is_dir()]
        self.folder = folders[0] if folders else source
        self.images = list(image_files(self.folder))
        self.used: set[Path] = set()
        self.by_name: dict[str, list[Path]] = {}
        for path in self.images:
            for key in {path.name, path.stem}:
                self.by_name.setdefault(key, []).append(path)

    def find(self, annotation: Path, stated: str) -> Path | None:
        """Beside the annotation file, or, where only one has the name, anywhere."""
        stated = stated.replace("\\", "/").rpartition("/")[2]
        for key in (stated, stated.rpartition(".")[0], annotation.stem):
            found = self.by_name.get(key, []) if key else []
            beside = [path for path in found if path.parent == annotation.parent]
            if beside or len(found) == 1:
                return (beside or found)[0]
        return None

    def unused(self) -> int:
        return len(self.images) - len(self.used)


def _xml_files(source: Path) -> Iterator[Path]:
    if not source.is_dir():
        return
    folder = source / "Annotations"
    yield from sorted((folder if folder.is_dir() else source).rglob("*.xml"))
