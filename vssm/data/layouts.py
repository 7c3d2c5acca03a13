"""Which kind of data a folder holds, and where: COCO json, semantic masks, or one folder per class."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vssm.data.files import has_image_suffix, printable_name
from vssm.data.imagefolder import require_folder
from vssm.data.split import LAYOUT

__all__ = ["LOOKED_FOR", "Kind", "Layout", "Source", "Task", "find_layout", "find_layouts"]

Task = Literal["classification", "detection", "segmentation"]
Kind = Literal["imagefolder", "coco", "ade20k", "cityscapes", "voc", "masks"]

_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}

LOOKED_FOR: dict[Task, tuple[str, ...]] = {
    "detection": (
        "COCO: annotations/instances_train.json (or instances_train2017.json) with images in train/, train2017/ or "
        "images/train/",
        "COCO: train/_annotations.coco.json beside the images",
    ),
    "segmentation": (
        "ADE20K: images/training/ with annotations/training/*.png",
        "Cityscapes: leftImg8bit/train/CITY/ with gtFine/train/CITY/*_gtFine_labelIds.png",
        "Pascal VOC: JPEGImages/ with SegmentationClass/*.png and ImageSets/Segmentation/train.txt",
        "images/train/ with masks/train/ or annotations/train/, masks of the same names, and classes.txt",
    ),
    "classification": (LAYOUT,),
}


@dataclass(frozen=True)
class Source:
    """Where a split lies: its images, and their annotations: a json, a folder of masks, or none (classification).

    `listed` is the file that lists the names of the split's images, where there is one (Pascal VOC).
    """

    images: Path
    annotations: Path | None = None
    listed: Path | None = None


@dataclass(frozen=True)
class Layout:
    """The kind of data below `root`, the task that they are for, and the splits that were found ("train", ...)."""

    kind: Kind
    task: Task
    root: Path
    splits: dict[str, Source]


def find_layout(root: str | Path, task: Task | None = None) -> Layout:
    """What `root` holds for a task, or at all.

    Raises OSError for a folder that is not there; ValueError, with all that was looked for, where there is nothing, and
    where there is more than one and no task is named.
    """
    root = Path(root)
    found = find_layouts(root, task)
    if not found:
        tasks: Sequence[Task] = (task,) if task else ("detection", "segmentation", "classification")
        lines = [f"\n  {name}: {line}" for name in tasks for line in LOOKED_FOR[name]]
        raise ValueError(
            f"{printable_name(root)} holds no training data that are known here; looked for{''.join(lines)}"
        )
    if len(found) > 1 and task is None:
        kinds = ", ".join(f"{layout.kind} ({layout.task})" for layout in found)
        raise ValueError(f"{printable_name(root)} holds more than one kind of data: {kinds}; name the task")
    return found[0]


def find_layouts(root: str | Path, task: Task | None = None) -> list[Layout]:
    """All that `root` holds: at most one layout per task, and one folder per class only where there is nothing else."""
    root = Path(root)
    require_folder(root, "images and their annotations")
    found: list[Layout] = []
    for kind, of_task, find in _FINDERS:
        if task in (None, of_task) and all(layout.task != of_task for layout in found):
            splits = find(root)
            if splits:
                found.append(Layout(kind, of_task, root, splits))
    if not found and task in (None, "classification"):
        splits = _class_folders(root)
        if splits:
            found.append(Layout("imagefolder", "classification", root, splits))
    return found


def _coco(root: Path) -> dict[str, Source]:
    splits: dict[str, Source] = {}
    for split, words in _SPLITS.items():
        beside = [root / word / "_annotations.coco.json" for word in words]
        found = [Source(path.parent, path) for path in beside if path.is_file()]
        folder = root / "annotations"
        if folder.is_dir():
            pattern = re.compile(rf"(instances_)?({'|'.join(words)})(\d{{4}})?\.json")
            matches = [(path, pattern.fullmatch(path.name)) for path in sorted(folder.iterdir())]
            for path, match in matches:
                if match is not None:
                    found.append(Source(_coco_images(root, match[2] + (match[3] or ""), match[2]), path))
        if len(found) > 1:
            names = " and ".join(str(source.annotations) for source in found)
            raise ValueError(f"{printable_name(root)} has more than one {split} split: {names}; move the others away")
        if found:
            splits[split] = found[0]
    return splits


def _coco_images(root: Path, *names: str) -> Path:
    """The folder of images of a split; that of COCO's own layout where there is none."""
    candidates = [root / above / name for name in names for above in ("", "images")]
    for folder in (*candidates, root / "images"):
        if folder.is_dir():
            return folder
    return candidates[0]


def _ade20k(root: Path) -> dict[str, Source]:
    return _pairs(root, "images", ("annotations",), {"train": ("training",), "val": ("validation",)})


def _masks(root: Path) -> dict[str, Source]:
    return _pairs(root, "images", ("masks", "annotations"), _SPLITS)


def _cityscapes(root: Path) -> dict[str, Source]:
    return _pairs(root, "leftImg8bit", ("gtFine",), {name: (name,) for name in ("train", "val")})


def _pairs(
    root: Path, images: str, annotations: Sequence[str], splits: dict[str, tuple[str, ...]]
) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for split, words in splits.items():
        for word in words:
            folder = root / images / word
            masks = [root / name / word for name in annotations if (root / name / word).is_dir()]
            if folder.is_dir() and masks and split not in found:
                found[split] = Source(folder, masks[0])
    return found


def _voc(root: Path) -> dict[str, Source]:
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    if not (images.is_dir() and masks.is_dir()):
        return {}
    lists = {name: root / "ImageSets" / "Segmentation" / f"{name}.txt" for name in ("train", "val")}
    return {name: Source(images, masks, path) for name, path in lists.items() if path.is_file()}


def _class_folders(root: Path) -> dict[str, Source]:
    splits = {name: Source(root / name) for name in ("train", "val", "test") if (root / name).is_dir()}
    if splits:
        return splits
    folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if any(has_image_suffix(entry.name) for folder in folders for entry in folder.iterdir()):
        return {"train": Source(root)}
    return {}


_FINDERS: tuple[tuple[Kind, Task, Callable[[Path], dict[str, Source]]], ...] = (
    ("coco", "detection", _coco),
    ("ade20k", "segmentation", _ade20k),
    ("cityscapes", "segmentation", _cityscapes),
    ("voc", "segmentation", _voc),
    ("masks", "segmentation", _masks),
)
