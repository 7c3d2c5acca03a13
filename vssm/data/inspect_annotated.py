"""What a data set for detection or segmentation holds: each file is read once, with its annotations."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vssm._words import spelled
from vssm.data.coco import CocoInstances
from vssm.data.coco_index import CocoIndex, survey_index
from vssm.data.files import printable_name
from vssm.data.image import UnreadableImage
from vssm.data.imagefolder import some
from vssm.data.inspection import ImageFacts, inspect_image
from vssm.data.layouts import Layout
from vssm.data.mask_classes import IGNORED
from vssm.data.masks import SemanticMasks
from vssm.data.parallel import map_ahead
from vssm.data.problems import Problem

__all__ = ["AnnotatedInspection", "LoadedSplits", "inspect_annotated", "load_annotated"]

# Kinds of problems, in the order in which they are told, with what stands before their number.
_KINDS = {
    "unreadable": "images or annotations that cannot be read",
    "size": "images of another size than their annotations",
    "segmentation": "segmentations that cannot be",
    "in_several_splits": "images in more than one split, to the byte",
    "unknown_class": "classes that training does not have",
    "stored": "annotations of the image as stored, which its EXIF orientation turns",
    "copies": "images that repeat another of their split, to the byte",
    "no_pixels": "classes without pixels",
}
_HARMLESS = frozenset(("stored", "copies", "no_pixels"))


@dataclass
class AnnotatedInspection:
    """layout: what was found
    classes: their names
    images: the number of each split; kinds: images per format and mode
    counts: for each split, objects (COCO) or pixels (masks) of each class
    problems: of each split, and of all under ""
    """

    layout: Layout
    classes: tuple[str, ...]
    images: dict[str, int] = field(default_factory=dict[str, int])
    kinds: Counter[str] = field(default_factory=Counter[str])
    counts: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    problems: dict[str, list[Problem]] = field(default_factory=dict[str, list[Problem]])

    @property
    def clean(self) -> bool:
        return not any(problem.repair for problems in self.problems.values() for problem in problems)


@dataclass
class LoadedSplits:
    """The splits of a layout for detection or segmentation, and the problems of those that are unusable."""

    datasets: dict[str, CocoInstances | SemanticMasks] = field(default_factory=dict[str, CocoInstances | SemanticMasks])
    unusable: dict[str, tuple[Problem, ...]] = field(default_factory=dict[str, tuple[Problem, ...]])


def load_annotated(layout: Layout) -> LoadedSplits:
    """Faults of a COCO json are problems, and what has none is loaded; a split of masks with faults is unusable.
    Raises OSError for a json that cannot be opened."""
    found = LoadedSplits()
    for split, source in layout.splits.items():
        if layout.kind != "coco":
            try:
                found.datasets[split] = SemanticMasks.of(layout, split, _as_is)
            except (OSError, ValueError) as error:
                found.unusable[split] = (Problem("unusable", str(error), (str(error),), True),)
            continue
        assert source.annotations is not None
        index, problems = survey_index(source.annotations)
        if index is None:
            found.unusable[split] = problems
        else:
            found.datasets[split] = CocoInstances(source.annotations, source.images, _as_is, surveyed=index)
    return found


def inspect_annotated(
    layout: Layout,
    loaded: LoadedSplits,
    threads: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> AnnotatedInspection:
    """Reads every image of `load_annotated` with its annotations, by default with one thread per core; `progress` is
    called after each."""
    threads = threads or os.cpu_count() or 1
    datasets = loaded.datasets
    first = next(iter(datasets.values()), None)
    result = AnnotatedInspection(layout, () if first is None else first.classes)
    result.problems |= {split: list(problems) for split, problems in loaded.unusable.items()}
    digests: dict[bytes, list[tuple[str, Path]]] = defaultdict(list)
    for split, dataset in datasets.items():
        entries: dict[str, list[str]] = defaultdict(list)
        pixels = np.zeros(len(dataset.classes), np.int64)
        read: Callable[[int], _Facts] = (
            partial(_read_coco, dataset) if isinstance(dataset, CocoInstances) else partial(_read_masks, dataset)
        )
        for found in map_ahead(read, range(len(dataset)), threads, ahead=4 * threads):
            progress()
            for kind, text in found.problems:
                entries[kind].append(text)
            if found.counts is not None:
                pixels += found.counts
            if found.image.error is None:
                result.kinds[found.image.kind] += 1
                digests[found.image.digest].append((split, found.image.path))
        result.images[split] = len(dataset)
        problems: tuple[Problem, ...] = ()
        if isinstance(dataset, CocoInstances):
            counted = dict(zip(dataset.classes, dataset.class_counts(), strict=True))
            entries["unknown_class"] += _unknown(dataset.index, result.classes)
            result.counts[split] = [counted.get(name, 0) for name in result.classes]
            problems = dataset.problems
        else:
            result.counts[split] = pixels.tolist()
            without = [name for name, count in zip(dataset.classes, result.counts[split], strict=True) if not count]
            entries["no_pixels"] += without
        result.problems[split] = [*_told(entries), *problems]
    result.problems[""] = list(_told(_repeated(digests)))
    return result


@dataclass
class _Facts:
    image: ImageFacts
    problems: list[tuple[str, str]]
    counts: Any = None


def _as_is(image: Any, annotations: Any) -> Any:
    return image, annotations


def _read_coco(dataset: CocoInstances, position: int) -> _Facts:
    path = dataset.path(position)
    facts, problems = _read_image(path, dataset.size(position), f"in {dataset.index.path.name}")
    try:
        dataset.objects(position)
    except UnreadableImage as error:
        problems.append(("segmentation", f"{printable_name(error.path)}: {error.reason}"))
    return _Facts(facts, problems)


def _read_masks(dataset: SemanticMasks, position: int) -> _Facts:
    path = dataset.path(position)
    try:
        labels = dataset.labels(position)
    except UnreadableImage as error:
        facts, problems = _read_image(path, None, "")
        return _Facts(facts, [*problems, ("unreadable", f"{printable_name(error.path)}: {error.reason}")])
    height, width = labels.shape
    facts, problems = _read_image(path, (height, width), "in its mask")
    counted = np.bincount(labels[labels != IGNORED], minlength=len(dataset.classes))
    return _Facts(facts, problems, counted)


def _read_image(path: Path, size: tuple[int, int] | None, where: str) -> tuple[ImageFacts, list[tuple[str, str]]]:
    """`size` is (height, width), as annotated."""
    facts = inspect_image(path)
    name = printable_name(path)
    if facts.error is not None:
        return facts, [("unreadable", f"{name}: {facts.error}")]
    width, height = facts.upright
    if size is None or size == (height, width):
        return facts, []
    if size == facts.size[::-1]:
        return facts, [("stored", name)]
    return facts, [("size", f"{name}: {width} x {height}, but {size[1]} x {size[0]} {where} (width x height)")]


def _unknown(index: CocoIndex, classes: Sequence[str]) -> list[str]:
    known = {spelled(name) for name in classes}
    used = set(np.unique(index.labels).tolist())
    return [name for label, name in enumerate(index.classes) if label in used and spelled(name) not in known]


def _repeated(digests: dict[bytes, list[tuple[str, Path]]]) -> dict[str, list[str]]:
    entries: dict[str, list[str]] = defaultdict(list)
    for group in digests.values():
        if len(group) > 1:
            kind = "in_several_splits" if len({split for split, _ in group}) > 1 else "copies"
            entries[kind].append(" = ".join(printable_name(path) for _, path in group))
    return entries


def _told(entries: dict[str, list[str]]) -> Iterator[Problem]:
    for kind, what in _KINDS.items():
        found: Iterable[str] = entries.get(kind, ())
        listed = tuple(found)
        if listed:
            shown = some(listed) if kind in ("no_pixels", "unknown_class") else f"first: {listed[0]}"
            yield Problem(kind, f"{what}: {len(listed)} ({shown})", listed, kind not in _HARMLESS)
