"""Images with the objects of a COCO instances json: boxes, polygons, RLE masks and crowds."""

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from vssm._words import spelled
from vssm.data import rle
from vssm.data.coco_index import CocoIndex, missing_files, read_index
from vssm.data.files import printable_name
from vssm.data.image import UnreadableImage, open_of_size
from vssm.data.imagefolder import require_folder, some
from vssm.data.jsonstream import read_element
from vssm.data.problems import Faults, Problem
from vssm.data.split import hold_out

__all__ = ["CocoInstances", "ObjectTransform", "Objects"]


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image, N of them.

    boxes (N, 4): float64 x1, y1, x2, y2 in pixels of the image, within it; all have an area
    labels (N,): int64, 0..K-1
    crowd (N,): bool; a crowd stands for many objects, and is no training target
    areas (N,): float64, as annotated: COCO's small, medium and large go by it
    ids (N,): int64, of the annotations; those of `CocoInstances.annotations`
    segmentations: polygons, an RLE, or None, of each
    size: height and width of the image
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    ids: NDArray[np.int64]
    segmentations: tuple[rle.Segmentation | None, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | Sequence[int]) -> "Objects":
        """Some of the objects: `chosen` is a bool array (N,), or positions."""
        selected = np.asarray(chosen)
        rows = np.arange(len(self))[selected] if selected.size else np.empty(0, np.int64)
        segmentations = tuple(self.segmentations[row] for row in cast(list[int], rows.tolist()))
        arrays = (self.boxes[rows], self.labels[rows], self.crowd[rows], self.areas[rows], self.ids[rows])
        return Objects(*arrays, segmentations, self.size)

    def mask(self, position: int) -> rle.Mask:
        """The mask (H, W) of one object. Raises ValueError where it has no segmentation."""
        segmentation = self.segmentations[position]
        if segmentation is None:
            raise ValueError(f"annotation {self.ids[position]} has no segmentation")
        return rle.decode(rle.of_segmentation(segmentation, *self.size))

    def masks(self) -> rle.Mask:
        """The masks of all objects, (N, H, W). Raises ValueError where one has no segmentation."""
        masks = np.zeros((len(self), *self.size), np.bool_)
        for position in range(len(self)):
            masks[position] = self.mask(position)
        return masks


ObjectTransform = Callable[[Image.Image, Objects], object]


class CocoInstances(Dataset[object]):
    """The images of a COCO instances json, in the order of the file, with their objects.

    Args:
        annotations: the json
        folder: the images; `file_name` is a path below it
        transform: makes a sample of an RGB image and its Objects
        classes: the names and order of the labels; the json's own, in ascending order of category ids, when not given
        masks: objects without a segmentation are left out
        annotated: images without an object to learn (crowds are none) are left out
        surveyed: the index of `survey_index`, for a json with faults: images without a file are left out, and a problem

    Labels are 0..K-1. `notes` are sentences on what was left out or is unusual; nothing is left out without one.
    Boxes outside of the image or without an area are no Objects; but they are among the `annotations` that evaluation
    takes, so that its figures are those of COCO's own tools.

    Annotations are those of the upright image, as an EXIF orientation turns it. Where width and height in the json are
    those of the stored image and not of the upright one, the annotations are of the former and the image is not turned.

    Raises OSError or ValueError as `read_index`; FileNotFoundError for missing images; ValueError for classes that
    `classes` lacks. `dataset[i]` raises UnreadableImage, also for a file of another size than the json has, and for
    polygons or an RLE that cannot be.
    """

    def __init__(
        self,
        annotations: str | Path,
        folder: str | Path,
        transform: ObjectTransform,
        *,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        annotated: bool = False,
        surveyed: CocoIndex | None = None,
    ):
        self.folder, self.transform, self.with_masks = Path(folder), transform, masks
        if surveyed is None:
            require_folder(self.folder, f"the images of {annotations}")
        self.index = read_index(Path(annotations)) if surveyed is None else surveyed
        missing = missing_files(self.folder, self.index.names)
        if missing and surveyed is None:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.index.names)} images of {self.index.path} are not in {self.folder}: "
                f"{some(list(map(printable_name, missing)))}; add the files, or remove their entries"
            )
        self.classes = self.index.classes if classes is None else tuple(classes)
        # From the labels of the file to those of `classes`; -1 for a class without objects that `classes` lacks.
        self.relabel = _relabel(self.index, self.classes)
        absent = set(missing)
        self.images: NDArray[np.int64] = np.asarray(
            [image for image, name in enumerate(self.index.names) if name not in absent], np.int64
        )
        self._faults = self._absent(missing)
        self._notes: tuple[str, ...] = ()
        if masks and not (self.index.masked & self._kept()).any():
            raise ValueError(
                f"{printable_name(self.index.path)}: no annotation has a segmentation, so that only boxes can be learnt"
            )
        if annotated:
            self._leave_out_empty()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what the file has that a reader must not miss."""
        texts = [problem.text for problem in self.problems]
        without = int((~self.index.masked & self.index.usable).sum()) if self.with_masks else 0
        if without:
            texts.append(f"objects without a segmentation: {without}; left out")
        name = printable_name(self.index.path.name)
        return tuple(f"{name}: {text}" for text in (*texts, *self._notes))

    @property
    def problems(self) -> tuple[Problem, ...]:
        return (*self._faults, *self.index.problems)

    @property
    def names(self) -> tuple[str, ...]:
        """`file_name` of each image."""
        return tuple(self.index.names[image] for image in cast(list[int], self.images.tolist()))

    @property
    def has_masks(self) -> bool:
        """Whether every object has a segmentation."""
        return bool(self.index.masked[self._kept()].all())

    def class_counts(self) -> list[int]:
        """Objects of each class, without crowds, in the images of this data set."""
        rows = np.flatnonzero(self._kept() & ~self.index.crowd)
        here = np.zeros(len(self.index.names), np.bool_)
        here[self.images] = True
        rows = rows[here[np.searchsorted(self.index.first, rows, side="right") - 1]]
        return np.bincount(self.relabel[self.index.labels[rows]], minlength=len(self.classes)).tolist()

    def fingerprint(self) -> str:
        """The same for the same names in the same order, wherever the folder lies: a hash of them."""
        return hashlib.sha256(b"\0".join(os.fsencode(spelled(name)) for name in self.names)).hexdigest()

    def with_images(self, images: Sequence[int] | NDArray[np.int64], transform: ObjectTransform) -> "CocoInstances":
        """The data set with some of its images only, by their positions in it, and another transform."""
        part = copy.copy(self)
        part.images, part.transform = self.images[np.asarray(images, np.int64)], transform
        return part

    def hold_out(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """Positions of images to train and of images to validate, `share` of all, drawn as `vssm.data.split` does."""
        positions = {name: position for position, name in enumerate(self.names)}
        _, val, _ = hold_out([(Path(name), 0) for name in positions], Path(), share, seed)
        found = {path for path, _ in val}
        held = [position for name, position in positions.items() if Path(name) in found]
        return [position for name, position in positions.items() if Path(name) not in found], held

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> object:
        """Raises UnreadableImage."""
        image, objects = self.read(position)
        return self.transform(image, objects)

    def read(self, position: int) -> tuple[Image.Image, Objects]:
        """The RGB image and its objects, before the transform. Raises UnreadableImage."""
        path = self.path(position)
        objects = self.objects(position)
        height, width = objects.size
        return open_of_size(path, (width, height), str(self.index.path.name)), objects

    def path(self, position: int) -> Path:
        return self.folder / self.index.names[self._image(position)]

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of an image, as the json has them."""
        image = self._image(position)
        return int(self.index.heights[image]), int(self.index.widths[image])

    def objects(self, position: int) -> Objects:
        """The objects of an image. Raises UnreadableImage, naming the annotation, for a segmentation that cannot be."""
        rows = self._rows(position)
        rows = rows[self._kept(rows)]
        index, (height, width) = self.index, self.size(position)
        boxes = index.boxes[rows].copy()
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, (width, height, width, height))
        return Objects(
            boxes=boxes,
            labels=self.relabel[index.labels[rows]],
            crowd=index.crowd[rows],
            areas=index.areas[rows],
            ids=self._ids(rows),
            segmentations=self._segmentations(position, rows),
            size=(height, width),
        )

    def image_id(self, position: int) -> int:
        """The image's id in the json."""
        return int(self.index.image_ids[self._image(position)])

    def image_entry(self, position: int) -> dict[str, Any]:
        """The image as a COCO json lists it."""
        height, width = self.size(position)
        name = self.index.names[self._image(position)]
        return {"id": self.image_id(position), "file_name": name, "height": height, "width": width}

    def categories(self) -> list[dict[str, Any]]:
        """The classes as a COCO json lists them, in the order of labels, with the ids of `category_id`."""
        return [{"id": self.category_id(label), "name": name} for label, name in enumerate(self.classes)]

    def category_id(self, label: int) -> int:
        """The json's id of the class of a label; a class that the json lacks gets an id above all of its own."""
        own = np.flatnonzero(self.relabel == label).tolist()
        return self.index.category_ids[own[0]] if own else max(self.index.category_ids) + 1 + label

    def annotations(self, position: int) -> list[dict[str, Any]]:
        """The annotations of an image as evaluators take them: all of the json's, with its image and category ids.

        Where the json has ids that evaluators miscount (0, or one twice) all annotations are renumbered from 1.
        """
        index, rows = self.index, self._rows(position)
        found: list[dict[str, Any]] = []
        with index.path.open("rb") as file:
            for row, identity in zip(rows.tolist(), self._ids(rows).tolist(), strict=True):
                entry = self._entry(file, row)
                found.append(
                    {
                        "id": identity,
                        "image_id": self.image_id(position),
                        "category_id": index.category_ids[index.labels[row]],
                        "bbox": index.boxes[row].tolist(),
                        "area": float(index.areas[row]),
                        "iscrowd": int(index.crowd[row]),
                    }
                )
                if index.masked[row]:
                    found[-1]["segmentation"] = _drawable(entry["segmentation"])
        return found

    def ground_truth(self) -> dict[str, Any]:
        """The whole data set as one COCO json for evaluators; see `annotations`. In memory all at once."""
        return {
            "images": [self.image_entry(position) for position in range(len(self))],
            "categories": self.categories(),
            "annotations": [entry for position in range(len(self)) for entry in self.annotations(position)],
        }

    def _rows(self, position: int) -> NDArray[np.int64]:
        image = self._image(position)
        return np.arange(int(self.index.first[image]), int(self.index.first[image + 1]))

    def _image(self, position: int) -> int:
        return int(self.images[position])

    def _kept(self, rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.bool_]:
        usable = self.index.usable[rows]
        return usable & self.index.masked[rows] if self.with_masks else usable

    def _ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.index.ids[rows] if self.index.plain_ids else rows + 1

    def _segmentations(self, position: int, rows: NDArray[np.int64]) -> tuple[rle.Segmentation | None, ...]:
        height, width = self.size(position)
        found: list[rle.Segmentation | None] = []
        if not self.index.masked[rows].any():
            return (None,) * len(rows)
        with self.index.path.open("rb") as file:
            for row in rows.tolist():
                if not self.index.masked[row]:
                    found.append(None)
                    continue
                segmentation = _drawable(self._entry(file, row)["segmentation"])
                try:
                    rle.check(segmentation, height, width)
                except ValueError as error:
                    named = f"annotation {self.index.numbers[row]} (id {self.index.ids[row]})"
                    raise UnreadableImage(self.path(position), f"{self.index.path.name}: {named} has {error}") from None
                found.append(segmentation)
        return tuple(found)

    def _entry(self, file: BinaryIO, row: int) -> dict[str, Any]:
        index = self.index
        try:
            entry = read_element(file, int(index.starts[row]), int(index.ends[row]))
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or cast(dict[str, Any], entry).get("id") != index.ids[row]:
            raise ValueError(f"{printable_name(index.path)} is not the file that it was at the start; start again")
        return cast(dict[str, Any], entry)

    def _absent(self, missing: Sequence[str]) -> tuple[Problem, ...]:
        faults = Faults(self.index.path.name, gather=True)
        if missing and not self.folder.is_dir():
            faults.add("images_folder", f"{printable_name(self.folder)}, with {len(missing)} images")
            return faults.problems()
        for name in missing:
            faults.add("missing_files", printable_name(self.folder / name))
        return faults.problems()

    def _leave_out_empty(self) -> None:
        rows = self._kept() & ~self.index.crowd
        filled = np.add.reduceat(np.append(rows, False), self.index.first[:-1]) > 0
        filled &= self.index.first[1:] > self.index.first[:-1]
        self.images = np.flatnonzero(filled)
        without = len(filled) - len(self.images)
        if without:
            self._notes = (f"images without an object to learn: {without} of {len(filled)}; left out",)


def _drawable(segmentation: Any) -> Any:
    """Without polygons of less than three points, which are counted when the file is read."""
    if isinstance(segmentation, list):
        polygons = cast(list[list[float]], segmentation)
        return [polygon for polygon in polygons if len(polygon) >= 6 and not len(polygon) % 2]
    return segmentation


def _relabel(index: CocoIndex, classes: Sequence[str]) -> NDArray[np.int64]:
    known = {spelled(name): label for label, name in enumerate(classes)}
    used = set(np.unique(index.labels).tolist())
    unknown = [name for label, name in enumerate(index.classes) if label in used and spelled(name) not in known]
    if unknown:
        raise ValueError(
            f"{printable_name(index.path)} has objects of {some(unknown)}, which the training classes do not include "
            f"(training knows {some(classes)}); rename or remove them"
        )
    return np.asarray([known.get(spelled(name), -1) for name in index.classes], np.int64)
