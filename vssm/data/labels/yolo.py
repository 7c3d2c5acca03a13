"""YOLO: a text file per image, a line per object, in shares of the image's width and height."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from vssm._yaml import read_yaml
from vssm.data.files import image_files, printable_name
from vssm.data.imagefolder import some
from vssm.data.labels.annotated import (
    Annotated,
    AnnotatedImage,
    Box,
    Labelled,
    Lost,
    box_around,
    clipped,
    polygon_area,
    read_text,
    size_of_file,
)

__all__ = ["holds", "read"]

_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# Rounding takes values a little below 0 or above 1; more than this is another unit.
_TOLERANCE = 0.05


def holds(source: Path) -> bool:
    """Whether there is a data.yaml with names, or labels with a classes.txt."""
    return bool(source.is_file() or _yaml_files(source) or (_names_file(source) and any(_label_files(source))))


def read(source: Path) -> Annotated:
    """A data.yaml, or a folder with one, or with classes.txt and images/ and labels/.

    Boxes are lines `CLASS X Y WIDTH HEIGHT` (the centre), polygons `CLASS X1 Y1 X2 Y2 X3 Y3 ...`; labels of
    `.../images/NAME.jpg` are in `.../labels/NAME.txt`, or beside it. An image without labels has no objects, which is
    YOLO's custom. Raises OSError; ValueError naming file and line.
    """
    plain, base = _settings(source)
    names = _names(plain, source)
    keypoints = _keypoints(plain)
    annotated = Annotated([], names)
    used: set[Path] = set()
    for split, folder, path in _images(plain, base):
        label_file = _label_file(path)
        size = size_of_file(path, None, path, annotated.lost)
        if size is None:
            continue
        objects: list[Labelled] = []
        if label_file.is_file():
            used.add(label_file)
            objects = _objects(label_file, size, names, keypoints, annotated.lost)
        else:
            annotated.lost.add("images without a label file, taken as images without objects", path)
        annotated.images.append(AnnotatedImage(path, _below(path, folder), size, objects, split))
    if not annotated.images:
        raise ValueError(f"{printable_name(base)} holds no images where data.yaml names them, or in images/")
    for label_file in _label_files(base):
        if label_file not in used:
            annotated.lost.add("label files of no image", label_file)
    return annotated


def _keypoints(plain: dict[str, Any]) -> int:
    """How many values of key points follow each box."""
    shape: Any = plain.get("kpt_shape")
    if shape is None:
        return 0
    try:
        points, values = shape
        return int(points) * int(values)
    except (TypeError, ValueError):
        raise ValueError(f"kpt_shape is {shape!r:.60}; expected [points, values of each]") from None


def _objects(path: Path, size: tuple[int, int], names: list[str], keypoints: int, lost: Lost) -> list[Labelled]:
    found: list[Labelled] = []
    seen: set[str] = set()
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{printable_name(path)}, line {number}"
        if line in seen:
            lost.add("lines that repeat an earlier one, left out", where)
            continue
        seen.add(line)
        label, values = _values(words, names, where)
        if keypoints and len(values) == 4 + keypoints:
            lost.add("objects with key points", where)
            values = values[:4]
        if len(values) == 5:
            lost.add("boxes with a confidence", where)
            values = values[:4]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError(
                f"{where}: {len(words)} values; expected a class and 4 values of a box, or x and y of 3 points or more"
            )
        coordinates = values[:2] if len(values) == 4 else values
        if min(values) < -_TOLERANCE or max(*values[2:4], *coordinates) > 1 + _TOLERANCE:
            raise ValueError(
                f"{where}: values from {min(values):g} to {max(values):g}; they must be shares of the image's "
                "width and height, from 0 to 1"
            )
        one = _labelled(names[label], values, size)
        box = clipped(one.box, size)
        if box is None or (one.segmentation is not None and not polygon_area(cast(Any, one.segmentation)[0])):
            lost.add("objects without an area within their image, left out", where)
            continue
        one.box = box
        found.append(one)
    return found


def _values(words: list[str], names: list[str], where: str) -> tuple[int, list[float]]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"{where}: {' '.join(words)!r:.60} is not a line of numbers") from None
    if not all(abs(number) < 1e9 for number in numbers):  # also NaN
        raise ValueError(f"{where}: values that are not finite, or far too large")
    label = int(numbers[0])
    if label != numbers[0] or not 0 <= label < len(names):
        raise ValueError(f"{where}: class {words[0]}; the classes are 0 to {len(names) - 1} ({some(names)})")
    return label, numbers[1:]


def _labelled(name: str, values: list[float], size: tuple[int, int]) -> Labelled:
    width, height = size
    if len(values) == 4:
        x, y, w, h = values
        box: Box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        return Labelled(name, box)
    polygon = [min(max(value, 0.0), 1.0) * (height if at % 2 else width) for at, value in enumerate(values)]
    return Labelled(name, box_around([polygon]), [polygon])


def _settings(source: Path) -> tuple[dict[str, Any], Path]:
    """What data.yaml has, and the folder that its paths are below."""
    files = [source] if source.is_file() else _yaml_files(source)
    if len(files) > 1:
        raise ValueError(f"{printable_name(source)} has {some([path.name for path in files])}; name the one to use")
    if not files:
        return {}, source
    plain = read_yaml(files[0])
    base = files[0].parent
    if isinstance(plain.get("path"), str) and (base / plain["path"]).is_dir():
        base = base / plain["path"]
    return plain, base


def _names(plain: dict[str, Any], source: Path) -> list[str]:
    names: Any = plain.get("names")
    if names is None:
        path = _names_file(source)
        if path is None:
            raise ValueError(f"{printable_name(source)}: no names of classes, in data.yaml or classes.txt")
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if isinstance(names, dict):
        known = cast(dict[Any, Any], names)
        if sorted(known, key=str) != sorted(range(len(known)), key=str):
            raise ValueError(
                f"{printable_name(source)}: names have the keys {some([str(key) for key in known])}, not 0 on"
            )
        names = [known[number] for number in range(len(known))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{printable_name(source)}: names must be a list, or a mapping from 0 on, got {names!r:.60}")
    found = [str(name) for name in cast(list[Any], names)]
    if len(set(found)) < len(found):
        raise ValueError(f"{printable_name(source)}: names of classes are there twice: {some(sorted(found))}")
    return found


def _images(plain: dict[str, Any], base: Path) -> Iterator[tuple[str | None, Path, Path]]:
    """Split, the folder that names are below, and the path of each image."""
    entries: dict[str, list[Any]] = {}
    for split, words in _SPLITS.items():
        for word in words:
            entry: Any = plain.get(word)
            if entry and split not in entries:
                entries[split] = cast(list[Any], entry) if isinstance(entry, list) else [entry]
    if entries.get("val") == entries.get("train"):
        entries.pop("val", None)
    if not entries:
        yield from _images_by_layout(base)
        return
    for split, places in entries.items():
        only = split if len(entries) > 1 else None
        for place in places:
            found = _place(base, str(place))
            if found.is_dir():
                yield from ((only, found, path) for path in image_files(found))
            else:
                for line in read_text(found).splitlines():
                    if line.strip():
                        yield only, found.parent, found.parent / line.strip()


def _place(base: Path, text: str) -> Path:
    """A path of data.yaml. Some exports write `../train/images` for a folder beside the file."""
    plain = text.removeprefix("./")
    for candidate in (base / plain, base / plain.removeprefix("../")):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{printable_name(base / plain)}, of data.yaml, does not exist")


def _images_by_layout(base: Path) -> Iterator[tuple[str | None, Path, Path]]:
    found = False
    for split, words in _SPLITS.items():
        for folder in (place for word in words for place in (base / "images" / word, base / word / "images")):
            if folder.is_dir():
                found = True
                yield from ((split, folder, path) for path in image_files(folder))
    if not found:
        folder = base / "images" if (base / "images").is_dir() else base
        yield from ((None, folder, path) for path in image_files(folder))


def _label_file(path: Path) -> Path:
    parts = list(path.parts[:-1])
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            return Path(*parts, f"{path.stem}.txt")
    return path.with_suffix(".txt")


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _yaml_files(source: Path) -> list[Path]:
    files = sorted((*source.glob("*.yaml"), *source.glob("*.yml")))
    return [path for path in files if "names" in read_yaml(path)]


def _names_file(source: Path) -> Path | None:
    for path in (source / "classes.txt", source / "labels" / "classes.txt"):
        if path.is_file():
            return path
    return None


def _label_files(base: Path) -> Iterator[Path]:
    for path in sorted(base.rglob("*.txt")):
        if "labels" in path.relative_to(base).parts[:-1] and path.name != "classes.txt":
            yield path
