"""COCO json as a source: to cut its images into tiles, to give its objects one class, or to divide one split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from vssm.data.coco import CocoInstances
from vssm.data.coco_index import missing_files, read_index
from vssm.data.files import printable_name
from vssm.data.image import UnreadableImage
from vssm.data.jsonstream import elements
from vssm.data.labels.annotated import Annotated, AnnotatedImage, Box, Labelled, size_of_file
from vssm.data.layouts import Source, find_layouts

__all__ = ["holds", "read"]

# What training leaves out or changes is left out here, too.
_LEFT_OUT = {
    "box_outside": "boxes outside of their image, left out",
    "box_empty": "boxes without an area, left out",
    "box_over": "boxes that reach over the border of their image, cut off",
    "bad_polygon": "annotations with polygons of less than 3 points, which are left out",
    "unlisted_image": "annotations of images that are not listed, left out",
}
_CARRIED = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"},
    "categories": {"id", "name"},
}


def holds(source: Path) -> bool:
    """Whether it is a json, or a folder that detection is trained with."""
    return source.is_file() or bool(find_layouts(source, "detection"))


def read(source: Path) -> Annotated:
    """A folder with COCO json as training reads it, or one json, with its images beside it, in images/ there, or in the
    folder above. Splits stay where there is more than one.

    Crowds, areas and segmentations are carried over; other fields, and the ids, are not. Raises OSError; ValueError as
    `vssm.data.coco.CocoInstances`.
    """
    annotated = Annotated([], [])
    splits = dict(_splits(source))
    for split, place in splits.items():
        assert place.annotations is not None
        dataset = CocoInstances(place.annotations, place.images, _as_is)
        annotated.classes += [name for name in dataset.classes if name not in annotated.classes]
        for problem in dataset.problems:
            if problem.kind in _LEFT_OUT:
                annotated.lost.add(_LEFT_OUT[problem.kind], problem.entries[0], problem.count)
        _count_other_fields(place.annotations, annotated)
        for position in range(len(dataset)):
            image = _image(dataset, position, annotated, split if len(splits) > 1 else None)
            if image is not None:
                annotated.images.append(image)
    return annotated


def _splits(source: Path) -> Iterator[tuple[str, Source]]:
    if not source.is_file():
        yield from find_layouts(source, "detection")[0].splits.items()
        return
    names = read_index(source).names
    folders = [source.parent, source.parent / "images", source.parent.parent / "images", source.parent.parent]
    missing = {folder: len(missing_files(folder, names)) for folder in folders}
    best = min(folders, key=lambda folder: missing[folder])
    if missing[best] < len(names):
        yield "train", Source(best, source)
        return
    looked = ", ".join(printable_name(folder) for folder in folders)
    raise FileNotFoundError(f"{printable_name(source)}: none of its {len(names)} images is in {looked}")


def _image(dataset: CocoInstances, position: int, annotated: Annotated, split: str | None) -> AnnotatedImage | None:
    path, (height, width) = dataset.path(position), dataset.size(position)
    size = size_of_file(path, (width, height), dataset.index.path, annotated.lost)
    if size is None:
        return None
    try:
        objects = dataset.objects(position)
    except UnreadableImage as error:
        annotated.lost.add("images with segmentations that cannot be, left out", f"{error}")
        return None
    found: list[Labelled] = []
    for row, (x1, y1, x2, y2) in enumerate(cast(list[Box], objects.boxes.tolist())):
        name, area = dataset.classes[int(objects.labels[row])], float(objects.areas[row])
        box = x1, y1, x2 - x1, y2 - y1
        found.append(Labelled(name, box, objects.segmentations[row], bool(objects.crowd[row]), area))
    return AnnotatedImage(path, _below(dataset.names[position]), size, found, split)


def _below(name: str) -> str:
    """A name that stays below the folder it is written to."""
    path = Path(name)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _count_other_fields(path: Path, annotated: Annotated) -> None:
    for element in elements(path, _CARRIED, unparsed="segmentation"):
        value = cast(dict[str, Any], element.value)
        for name in value.keys() - _CARRIED[element.section]:
            if value[name] not in (None, "", [], {}):
                annotated.lost.add(f"{element.section} with the field {name!r:.40}", f"{path} {element.number}")


def _as_is(image: Any, objects: Any) -> Any:
    return image, objects
