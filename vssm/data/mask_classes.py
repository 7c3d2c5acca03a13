"""What the values of semantic masks mean: names of classes, and which value, or colour, is which class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vssm.data.files import printable_name

__all__ = ["CITYSCAPES", "IGNORED", "VOC", "MaskClasses", "ade20k_classes", "read_classes"]

# The label that no loss and no metric counts.
IGNORED = 255
_OUT_OF_RANGE = -1
_VALUES = 1 << 16  # masks of 16 bits

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class MaskClasses:
    """names: of the labels 0..K-1; values: of a mask, and the label of each, or IGNORED; colours: the same for masks in
    RGB. A value that is not listed is an error."""

    names: tuple[str, ...]
    values: Mapping[int, int]
    colours: Mapping[Colour, int] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORED:
            raise ValueError(f"{len(self.names)} classes; masks can have 1 to {IGNORED}, as the label 255 is ignored")

    @classmethod
    def numbered(cls, names: Sequence[str], first: int = 0, ignored: Sequence[int] = (IGNORED,)) -> "MaskClasses":
        """The values from `first` on are the labels 0, 1, ...; `ignored` values are not counted."""
        values = dict.fromkeys(ignored, IGNORED) | {first + label: label for label in range(len(names))}
        return cls(tuple(names), values)

    def table(self) -> NDArray[np.int16]:
        """(65536,): the label of each value, IGNORED, or -1 for a value that must not be."""
        table = np.full(_VALUES, _OUT_OF_RANGE, np.int16)
        for value, label in self.values.items():
            table[value] = label
        return table


def ade20k_classes(root: Path) -> MaskClasses:
    """ADE20K's 150 classes: 0 in the masks is ignored, 1 to 150 are the labels 0 to 149 (`reduce_zero_label`).

    Names are those of `objectInfo150.txt`, which the data set has at its root; numbers where it is not there.
    """
    path = root / "objectInfo150.txt"
    names = [f"class {number}" for number in range(1, 151)]
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
        if len(names) != 150 or not all(names):
            raise ValueError(f"{printable_name(path)}: expected a line of titles and 150 lines, with the names last")
    return MaskClasses.numbered(names, first=1, ignored=(0, IGNORED))


VOC = MaskClasses.numbered(
    (
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
        "pottedplant sheep sofa train tvmonitor"
    ).split()
)

# The 19 classes that are evaluated, by their value in *_labelIds.png; the others are ignored.
_CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
CITYSCAPES = MaskClasses(
    tuple(_CITYSCAPES.values()),
    dict.fromkeys((*range(34), 255), IGNORED) | {value: label for label, value in enumerate(_CITYSCAPES)},
)


def read_classes(path: Path) -> MaskClasses:
    """Reads `classes.txt`: a class per line, in one of three forms, the same for all lines.

        NAME               the value in the masks is the number of the line, from 0
        VALUE,NAME         this value, 0 to 65535
        R G B,NAME         this colour, in masks that are RGB

    Labels are in the order in which names first appear; several values may have one name. The name `ignore` is for
    values that are not counted; with the first two forms 255 is ignored unless it has a name. Empty lines and lines
    that begin with # are passed over.

    Raises OSError; ValueError naming the line, for another form, a value twice, or no class.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{printable_name(path)}: not a text in UTF-8") from None
    names: list[str] = []
    values: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    form, position = 0, 0
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{printable_name(path)}, line {number}"
        key, name = _parsed(line)
        if form not in (0, 1 + len(key)):
            raise ValueError(
                f"{where}: {line!r} has another form than the lines before; use NAME, or VALUE,NAME, or R G B,NAME"
            )
        form = 1 + len(key)
        if not key:
            key, position = (position,), position + 1
        if max(key) >= (_VALUES if len(key) == 1 else 256):
            raise ValueError(f"{where}: {' '.join(map(str, key))} is too large")
        if name != "ignore" and name not in names:
            names.append(name)
        elif form == 1 and name != "ignore":
            raise ValueError(
                f"{where}: {name!r} for the second time; several values of one class need the form VALUE,NAME"
            )
        label = IGNORED if name == "ignore" else names.index(name)
        if len(key) == 3:
            known, found = colours.setdefault(key, label), key
        else:
            known, found = values.setdefault(key[0], label), key[0]
        if known != label:
            raise ValueError(f"{where}: {found} for the second time")
    if not names:
        raise ValueError(f"{printable_name(path)} names no class; expected one per line")
    if form == 4:
        return MaskClasses(tuple(names), values, colours)
    return MaskClasses(tuple(names), {IGNORED: IGNORED} | values)


def _parsed(line: str) -> tuple[tuple[int, ...], str]:
    """The value, the colour or nothing, and the name of a class."""
    head, comma, name = line.partition(",")
    numbers = head.split()
    if comma and name.strip() and len(numbers) in (1, 3) and all(word.isdecimal() for word in numbers):
        return tuple(int(word) for word in numbers), name.strip()
    return (), line
