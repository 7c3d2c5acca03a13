"""Writes annotated images as COCO json files, with the images linked, copied or cut into tiles."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vssm.data import rle
from vssm.data.image import UnreadableImage, open_of_size
from vssm.data.labels.annotated import Annotated, AnnotatedImage, Labelled
from vssm.data.labels.tiles import Tiling
from vssm.data.split import hold_out

__all__ = ["Written", "write_coco"]


@dataclass
class Written:
    """Images and objects of each split."""

    images: dict[str, int] = field(default_factory=dict[str, int])
    objects: dict[str, int] = field(default_factory=dict[str, int])


def write_coco(
    annotated: Annotated,
    out: Path,
    val_share: float = 0.2,
    seed: int = 0,
    tiling: Tiling | None = None,
    copy: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> Written:
    """Writes out/SPLIT/IMAGE and out/annotations/instances_SPLIT.json.

    Images without a split of the source are divided with `seed`: the share `val_share` validates (0: all train). They
    are hard links where the file system allows it, and copies else or with `copy`. With `tiling`, images larger than a
    tile are cut into PNG files. What gets lost is added to `annotated.lost`. `progress` is called after each image.

    Raises OSError; ValueError where nothing is left.
    """
    _give_splits(annotated, val_share, seed)
    labels = {name: label for label, name in enumerate(annotated.classes)}
    written = Written()
    for split in ("train", "val", "test"):
        images = [image for image in annotated.images if image.split == split]
        if not images:
            continue
        writer = _Writer(annotated, out / split, labels, copy)
        for image in images:
            writer.add(image, tiling)
            progress()
        (out / "annotations").mkdir(parents=True, exist_ok=True)
        with (out / "annotations" / f"instances_{split}.json").open("w", encoding="utf-8") as file:
            json.dump(writer.coco(), file, ensure_ascii=False)
        written.images[split], written.objects[split] = len(writer.images), len(writer.annotations)
    if not sum(written.objects.values()):
        raise ValueError("no object is left; see --min-visible")
    return written


def _give_splits(annotated: Annotated, val_share: float, seed: int) -> None:
    free = [image for image in annotated.images if image.split is None]
    if free and len(free) < len(annotated.images):
        annotated.notes.append(f"{len(free)} images are in no split of the source: they train")
        val_share = 0.0
    paths = {Path(f"{number}/{image.name}"): image for number, image in enumerate(free)}
    held: set[Path] = set()
    if val_share > 0 and len(free) > 1:
        # The draw depends on names only, not on their position.
        named = {Path(image.name): path for path, image in paths.items()}
        _, val, _ = hold_out([(name, 0) for name in named], Path(), val_share, seed)
        held = {named[name] for name, _ in val}
        annotated.notes.append(f"{len(held)} of {len(free)} images validate (drawn with seed {seed})")
    for path, image in paths.items():
        image.split = "val" if path in held else "train"


class _Writer:
    def __init__(self, annotated: Annotated, folder: Path, labels: dict[str, int], copy: bool):
        self.lost, self.folder, self.labels, self.copy = annotated.lost, folder, labels, copy
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.names: set[str] = set()

    def add(self, image: AnnotatedImage, tiling: Tiling | None) -> None:
        if tiling is not None and max(image.size) > tiling.size:
            self.cut(image, tiling)
            return
        name = self.new_name(image.name)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if image.content is not None:
            path.write_bytes(image.content)
        else:
            _link(image.path, path, self.copy)
        self.entry(name, image.size, image.objects)

    def cut(self, image: AnnotatedImage, tiling: Tiling) -> None:
        try:
            pixels = _pixels(image)
        except UnreadableImage as error:
            self.lost.add("images that cannot be read, left out", f"{error}")
            return
        kept = [False] * len(image.objects)
        name = Path(image.name)
        for window in tiling.windows(*image.size):
            cuts: list[Labelled] = []
            for number, one in enumerate(image.objects):
                found = tiling.cut(one, window)
                if found is not None:
                    kept[number] = True
                    cuts.append(found)
            tile = self.new_name(name.with_name(f"{name.stem}_{window.x}_{window.y}.png").as_posix())
            path = self.folder / tile
            path.parent.mkdir(parents=True, exist_ok=True)
            corners = (window.x, window.y, window.x + window.width, window.y + window.height)
            pixels.crop(corners).save(path)
            self.entry(tile, (window.width, window.height), cuts)
        missing = kept.count(False)
        self.lost.add(
            f"objects with less than {tiling.visible:.0%} of their area in every tile, left out", image.path, missing
        )

    def new_name(self, name: str) -> str:
        """`name`, with a number where it is taken."""
        path, number = Path(name), 2
        while name.lower() in self.names:
            name = path.with_name(f"{path.stem}_{number}{path.suffix}").as_posix()
            number += 1
        self.names.add(name.lower())
        return name

    def entry(self, name: str, size: tuple[int, int], objects: list[Labelled]) -> None:
        width, height = size
        identity = 1 + len(self.images)
        self.images.append({"id": identity, "file_name": name, "width": width, "height": height})
        for one in objects:
            found: dict[str, Any] = {
                "id": 1 + len(self.annotations),
                "image_id": identity,
                "category_id": 1 + self.labels[one.name],
                "bbox": [round(value, 3) for value in one.box],
                "area": round(one.box[2] * one.box[3], 3),
                "iscrowd": int(one.crowd),
            }
            if one.segmentation is not None:
                found["segmentation"] = one.segmentation
                found["area"] = rle.area(rle.of_segmentation(one.segmentation, height, width))
            if one.area is not None:
                found["area"] = one.area
            self.annotations.append(found)

    def coco(self) -> dict[str, Any]:
        categories = [{"id": 1 + label, "name": name} for name, label in self.labels.items()]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def _pixels(image: AnnotatedImage) -> Image.Image:
    if image.content is None:
        return open_of_size(image.path, image.size, "its annotations")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / image.path.name
        path.write_bytes(image.content)
        return open_of_size(path, image.size, "its annotations")


def _link(source: Path, target: Path, copy: bool) -> None:
    if not copy:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
