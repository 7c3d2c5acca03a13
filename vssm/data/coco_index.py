"""What a COCO instances json holds, as arrays: small enough to share with the processes that load images.

Segmentations stay in the file; the index knows where each annotation lies in it.
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vssm.data.files import printable_name
from vssm.data.imagefolder import some
from vssm.data.jsonstream import BadJson, Element, Unparsed, elements
from vssm.data.problems import Faults, Problem

__all__ = ["CocoIndex", "missing_files", "read_index", "survey_index"]

# COCO's own boxes reach over the border by fractions of a pixel.
OVERHANG = 1.0
# Of the table of annotations: integers by name, and how many others.
COLUMNS, FLOATS = ("id", "image_id", "category_id", "start", "end", "number"), 5
_SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoIndex:
    """Images in the order of the file; annotations by image, then in the order of the file.

    image_ids (I,), names, widths, heights: of each image, as the file has them
    category_ids, classes: the category of each label 0..K-1, in ascending order of ids, and its name
    first (I + 1,): annotations of image i are those from first[i] to first[i + 1]
    ids (N,): of the annotations, as in the file
    labels (N,), boxes (N, 4) as x, y, width, height, areas (N,), crowd (N,)
    masked (N,): whether there is a segmentation
    usable (N,): whether the box has an area within the image
    numbers, starts, ends (N,): position in the list "annotations", and bytes in the file
    problems: what a reader should know of
    """

    path: Path
    image_ids: NDArray[np.int64]
    names: tuple[str, ...]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    category_ids: tuple[int, ...]
    classes: tuple[str, ...]
    first: NDArray[np.int64]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    masked: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    numbers: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    problems: tuple[Problem, ...]

    @property
    def plain_ids(self) -> bool:
        """Whether the annotations' ids are fit for evaluators: none of them 0, none twice."""
        return not any(problem.kind in ("id_zero", "doubled_ids") for problem in self.problems)


def read_index(path: Path) -> CocoIndex:
    """Reads a COCO instances json of any size, in memory that grows with the annotations but not their polygons.

    Raises OSError; BadJson with line and reason; ValueError naming file and entry: a section or an entry's field is
    missing or of another kind, an image or category id twice, an annotation of a category that is not listed, a box
    with values that are not finite or with negative sides, or nothing but crowds or no annotation at all. What can be
    left out is counted in `problems`: boxes outside of the image or without an area, annotations of images that are not
    listed; and so is what is kept but worth knowing.
    """
    tables = _Tables(path, Faults(printable_name(path)))
    tables.fill()
    index = tables.index()
    assert index is not None
    return index


def survey_index(path: Path) -> tuple[CocoIndex | None, tuple[Problem, ...]]:
    """`read_index`, but faults are gathered, and entries that cannot be used are left out: the index of the others,
    None where nothing can be used, and all problems. Raises OSError."""
    tables = _Tables(path, Faults(printable_name(path), gather=True))
    index = None
    try:
        tables.fill()
    except BadJson as error:
        tables.faults.add("json", str(error))
    else:
        index = tables.index()
    return index, tables.faults.problems() if index is None else index.problems


@dataclass
class _Tables:
    path: Path
    faults: Faults
    image_numbers: list[int] = field(default_factory=list[int])
    image_ids: list[int] = field(default_factory=list[int])
    names: list[str] = field(default_factory=list[str])
    sides: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    categories: dict[int, str] = field(default_factory=dict[int, str])
    integers: "array[int]" = field(default_factory=lambda: array("q"))  # COLUMNS of each
    floats: "array[float]" = field(default_factory=lambda: array("d"))  # box and area of each
    flags: bytearray = field(default_factory=bytearray)  # crowd 1, masked 2, area missing 4, polygons left out 8

    def fill(self) -> None:
        try:
            for element in elements(self.path, _SECTIONS, unparsed="segmentation"):
                self.add(element)
        except BadJson as error:
            if "an object {...} was expected, got '['" in str(error):
                raise BadJson(
                    f"{error}. This is a list, as that of detection results; expected a COCO instances file with "
                    "images, annotations and categories"
                ) from None
            raise

    def add(self, element: Element) -> None:
        if element.number < 0:
            self.faults.add("sections", f"{element.section} must be a list")
            return
        kind = f"bad_{_SINGULAR[element.section]}"
        try:
            if element.section == "annotations":
                self.annotation(element)
            elif element.section == "images":
                self.image(element)
            else:
                self.category(element.value)
        except KeyError as error:
            self.faults.add(kind, f"{_named(element)} has no {error.args[0]}")
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            # What was written of the entry before it failed.
            del self.integers[len(COLUMNS) * len(self.flags) :]
            del self.floats[FLOATS * len(self.flags) :]
            self.faults.add(kind, f"{_named(element)}: {error}")

    def image(self, element: Element) -> None:
        value: dict[str, Any] = element.value
        identity, name, width, height = value["id"], value["file_name"], value["width"], value["height"]
        _integer("id", identity)
        if not isinstance(name, str) or not name:
            raise ValueError(f"file_name is {name!r}, not a name")
        for side, what in ((width, "width"), (height, "height")):
            if _integer(what, side) < 1:
                raise ValueError(f"{what} is {side}; it must be at least 1")
        self.image_numbers.append(element.number)
        self.image_ids.append(identity)
        self.names.append(name)
        self.sides.append((width, height))

    def category(self, value: dict[str, Any]) -> None:
        identity, name = _integer("id", value["id"]), value["name"]
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"name is {name!r}, not a name")
        if identity in self.categories:
            raise ValueError(f"the id is also that of {self.categories[identity]!r}; every category needs its own")
        self.categories[identity] = name

    def annotation(self, element: Element) -> None:
        value: dict[str, Any] = element.value
        box = value["bbox"]
        x, y, width, height = box
        area = value.get("area")
        segmentation: Any = value.get("segmentation")
        flags = bool(value.get("iscrowd"))
        if area is None:
            area, flags = width * height, flags | 4
        if segmentation:
            flags |= 2
            lengths = _lengths(segmentation)
            usable = sum([length >= 6 and not length & 1 for length in lengths])
            if usable < len(lengths) or not lengths:
                flags = flags | 8 if usable else flags & ~2 | 8 * bool(lengths)
        # array refuses what is not an integer, or not a number.
        ids = value["id"], value["image_id"], value["category_id"]
        self.integers.extend((*ids, element.start, element.end, element.number))
        self.floats.extend((x, y, width, height, area))
        self.flags.append(flags)

    def index(self) -> CocoIndex | None:
        """None where a list is empty."""
        if not self._has_sections():
            return None
        integers = np.frombuffer(self.integers, np.int64).reshape(-1, len(COLUMNS))
        floats = np.frombuffer(self.floats, np.float64).reshape(-1, FLOATS)
        flags = np.frombuffer(self.flags, np.uint8)
        category_ids = tuple(sorted(self.categories))
        labels, known = self._labels(integers, np.asarray(category_ids, np.int64))
        good = self._good_boxes(integers, floats) & known
        if not good.all():
            integers, floats, flags, labels = integers[good], floats[good], flags[good], labels[good]
        chosen = self._single_images(np.asarray(self.image_ids, np.int64))
        image_ids = np.asarray(self.image_ids, np.int64)[chosen]
        sides = np.asarray(self.sides, np.int64)[chosen]

        order = np.argsort(image_ids, kind="stable")
        found = np.minimum(np.searchsorted(image_ids, integers[:, 1], sorter=order), len(image_ids) - 1)
        images = order[found]
        listed = image_ids[images] == integers[:, 1]
        # By image; annotations of images that are not listed come last and are cut off.
        rows = np.argsort(np.where(listed, images, len(image_ids)), kind="stable")[: int(listed.sum())]
        boxes = np.ascontiguousarray(floats[rows, :4])
        limits = sides[images[rows]].astype(np.float64)
        visible = np.minimum(boxes[:, :2] + boxes[:, 2:], limits) - np.maximum(boxes[:, :2], 0.0)
        empty = np.asarray((boxes[:, 2:] <= 0).any(1))
        outside = np.asarray((visible <= 0).any(1)) & ~empty
        usable = ~(empty | outside)
        index = CocoIndex(
            path=self.path,
            image_ids=image_ids,
            names=tuple(self.names[image] for image in cast(list[int], chosen.tolist())),
            widths=sides[:, 0].copy(),
            heights=sides[:, 1].copy(),
            category_ids=category_ids,
            classes=_unlike(category_ids, self.categories),
            first=np.searchsorted(images[rows], np.arange(len(image_ids) + 1)),
            ids=integers[rows, 0],
            labels=labels[rows],
            boxes=boxes,
            areas=floats[rows, 4],
            crowd=(flags[rows] & 1).astype(np.bool_),
            masked=(flags[rows] & 2).astype(np.bool_),
            usable=usable,
            numbers=integers[rows, 5],
            starts=integers[rows, 3],
            ends=integers[rows, 4],
            problems=(),
        )
        self._check_objects(index)
        over = np.maximum(boxes[:, :2] + boxes[:, 2:] - limits, -boxes[:, :2]).max(1, initial=0.0)
        found = _Finder(index, integers, rows, listed).find(outside, empty, usable & (over > OVERHANG), flags[rows])
        object.__setattr__(index, "problems", (*self.faults.problems(), *found))
        return index

    def _has_sections(self) -> bool:
        complete = True
        for section, rows in (("images", self.names), ("categories", self.categories), ("annotations", self.flags)):
            if not rows:
                hint = ": there are no objects to learn or to evaluate with" if section == "annotations" else ""
                self.faults.add("sections", f"the list {section} is empty or missing{hint}")
                complete = False
        return complete

    def _single_images(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of images whose id was not there before."""
        twice = _repeated(image_ids)
        first = (
            {self.image_ids[position]: position for position in reversed(range(len(image_ids)))} if len(twice) else {}
        )
        for position in cast(list[int], np.sort(twice).tolist()):
            earlier = first[self.image_ids[position]]
            self.faults.add(
                "doubled_image_ids",
                f"images {self.image_numbers[earlier]} and {self.image_numbers[position]} ({self.names[earlier]}, "
                f"{self.names[position]}) have the same id {self.image_ids[position]}; give every image its own",
            )
        return np.setdiff1d(np.arange(len(image_ids)), twice)

    def _good_boxes(self, integers: NDArray[np.int64], floats: NDArray[np.float64]) -> NDArray[np.bool_]:
        bad = np.asarray(~np.isfinite(floats).all(1) | (floats[:, 2:] < 0).any(1))
        for row in np.flatnonzero(bad).tolist():
            box, area = floats[row, :4].tolist(), float(floats[row, 4])
            self.faults.add(
                "bad_box",
                f"annotation {integers[row, 5]} (id {integers[row, 0]}) has the bbox {box} and the area {area:g}; a "
                "bbox is [x, y, width, height] in pixels, with sides and an area of 0 or more",
            )
        return ~bad

    def _labels(
        self, integers: NDArray[np.int64], category_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The label of each annotation, and whether its category is listed."""
        labels = np.minimum(np.searchsorted(category_ids, integers[:, 2]), len(category_ids) - 1)
        unknown = np.asarray(category_ids[labels] != integers[:, 2])
        listed = some([str(identity) for identity in category_ids.tolist()], 8)
        for row in np.flatnonzero(unknown).tolist():
            more = "" if self.faults.gather else f" and {int(unknown.sum()) - 1} more"
            self.faults.add(
                "unknown_category",
                f"annotation {integers[row, 5]} (id {integers[row, 0]}){more} have a category_id that is not listed, "
                f"{integers[row, 2]}; categories have {listed}. Evaluators would leave them out: add the category or "
                "remove them",
            )
        return labels, ~unknown

    def _check_objects(self, index: CocoIndex) -> None:
        if not (index.usable & ~index.crowd).any():
            total, crowds = len(index.ids), int(index.crowd.sum())
            self.faults.add(
                "nothing_to_learn",
                f"there is no object to learn or to evaluate with: of {total} annotations of listed images {crowds} "
                "are crowds, the other boxes are outside of their image or without an area",
            )


@dataclass
class _Finder:
    index: CocoIndex
    integers: NDArray[np.int64]
    order: NDArray[np.int64]  # the row of `integers` that each annotation of the index has
    listed: NDArray[np.bool_]

    def find(
        self,
        outside: NDArray[np.bool_],
        empty: NDArray[np.bool_],
        over: NDArray[np.bool_],
        flags: NDArray[np.uint8],
    ) -> Iterator[Problem]:
        index, ids, unlisted = self.index, self.integers[:, 0], np.flatnonzero(~self.listed)
        kept = "left out of training, counted by evaluation as COCO's own does"
        yield from self._rows("box_outside", outside, "boxes outside of their image", kept)
        yield from self._rows("box_empty", empty, "boxes without an area", kept)
        yield from self._rows(
            "box_over",
            over,
            f"boxes that reach over the border of their image by more than {OVERHANG:g} pixel",
            "cut off",
        )
        yield from self._numbers(
            "doubled_ids",
            np.sort(_repeated(ids)),
            "annotations with the id of an earlier one",
            "kept, and all are renumbered for evaluation",
        )
        yield from self._numbers(
            "id_zero",
            np.flatnonzero(ids == 0),
            "annotations with the id 0, which evaluators miscount",
            "all are renumbered for evaluation",
        )
        yield from self._numbers(
            "unlisted_image",
            unlisted,
            "annotations of images that are not listed",
            "left out, as every evaluator does",
            [f", image_id {image}" for image in self.integers[unlisted, 1]],
        )
        bad = (flags & 8).astype(np.bool_)
        yield from self._rows(
            "bad_polygon", bad, "annotations with polygons of less than 3 points", "those polygons are left out"
        )
        no_area = (flags & 4).astype(np.bool_)
        yield from self._rows("no_area", no_area, "annotations without an area", "that of the box is taken", False)
        if index.masked.any():
            yield from self._rows("no_mask", ~index.masked, "annotations with a box but no segmentation", "", False)
        yield from self._other()

    def _other(self) -> Iterator[Problem]:
        index = self.index
        objects = np.bincount(index.labels[index.usable & ~index.crowd], minlength=len(index.classes))
        unused = tuple(name for name, number in zip(index.classes, objects) if not number)
        if unused:
            text = f"classes without objects: {len(unused)} of {len(index.classes)} ({some(unused)})"
            yield Problem("no_objects", text, unused, False)
        twice = tuple(name for name, number in Counter(index.names).items() if number > 1)
        if twice:
            text = f"files that are listed more than once: {len(twice)} ({some(twice)})"
            yield Problem("doubled_images", text, twice, True)

    def _rows(
        self, kind: str, found: NDArray[np.bool_], what: str, then: str, repair: bool = True
    ) -> Iterator[Problem]:
        index, rows = self.index, np.flatnonzero(found)
        rows = rows[np.argsort(index.numbers[rows])]
        images = np.searchsorted(index.first, rows, side="right") - 1
        more = [
            f", bbox {index.boxes[row].tolist()}, {index.names[image]}"
            for row, image in zip(rows.tolist(), images.tolist())
        ]
        return self._numbers(kind, self.order[rows], what, then, more, repair)

    def _numbers(
        self,
        kind: str,
        rows: NDArray[np.int64],
        what: str,
        then: str,
        more: Sequence[str] | None = None,
        repair: bool = True,
    ) -> Iterator[Problem]:
        if not len(rows):
            return
        entries = tuple(
            f"annotation {self.integers[row, 5]} (id {self.integers[row, 0]}){more[position] if more else ''}"
            for position, row in enumerate(cast(list[int], rows.tolist()))
        )
        text = f"{what}: {len(entries)} (first: {entries[0]})"
        yield Problem(kind, f"{text}; {then}" if then else text, entries, repair)


def _lengths(segmentation: Any) -> list[int]:
    """How many values each polygon has; of an RLE as many as are enough."""
    if type(segmentation) is Unparsed:
        parts = segmentation.split("]")
        if len(parts) == 2 and segmentation[1:-1].strip():
            raise ValueError("segmentation must be a list of polygons, each a list [x1, y1, x2, y2, ...]")
        return [part.count(",") + (not position) for position, part in enumerate(parts[:-2])]
    if type(segmentation) is list:
        return [len(polygon) for polygon in cast(list[Any], segmentation)]
    return [6]


_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


def _named(element: Element) -> str:
    value: Any = element.value
    entry = cast(dict[str, Any], value) if isinstance(value, dict) else dict[str, Any]()
    return f"{_SINGULAR[element.section]} {element.number} (id {entry.get('id')})"


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, not an integer")
    if abs(value) >= 1 << 63:
        raise ValueError(f"{name} is {value}, more than 64 bits hold")
    return value


def _repeated(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of values that have been there before."""
    _, first = np.unique(values, return_index=True)
    again = np.ones(len(values), np.bool_)
    again[first] = False
    return np.flatnonzero(again)


def _unlike(ids: Sequence[int], names: dict[int, str]) -> tuple[str, ...]:
    """The names of the categories; those that share one are told apart by their ids."""
    shared = Counter(names.values())
    return tuple(names[one] if shared[names[one]] == 1 else f"{names[one]} ({one})" for one in ids)


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    """The names that are no files below `folder`. Each folder is listed once: quicker than a question per file."""
    there: dict[str, set[str]] = {}
    missing: list[str] = []
    for name in names:
        parent, own = os.path.split(name)
        if parent not in there:
            try:
                with os.scandir(folder / parent) as listing:
                    there[parent] = {entry.name for entry in listing}
            except OSError:
                there[parent] = set()
        if own not in there[parent]:
            missing.append(name)
    return missing
