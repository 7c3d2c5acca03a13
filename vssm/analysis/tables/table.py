"""A table of a paper, read from its file. Standard library only, so that names and mistakes answer at once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

from vssm._words import nearest

SIZE = 224
NAMES = (
    "imagenet", "acceleration", "resolution", "scan-patterns", "initialization", "d-state", "ssm-ratio", "mlp-ratio",
    "activation", "sasf", "fusion", "adaptor", "coco-1x", "coco-3x", "cascade", "ade20k",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row.

    name: within its table.
    model, options: what `timm.create_model` builds it from; model is None where no package has the network.
    upernet: width of the UPerNet of 150 classes that the model is the backbone of, or
    detector: "mask_rcnn" or "cascade_mask_rcnn" of 80 classes; None for a classifier.
    size: image side, or (height, width).
    change: what this row changes, in the papers' words shortened, for tables of steps.
    params, gmacs: printed by the paper, millions and 1e9 multiply-adds of one image, as strings with its digits; None
        where it prints none.
    throughput, train_throughput: images/s of the paper, on its own GPU: only their ratios mean anything elsewhere.
    scores: what the paper reached, by the keys of `Table.scores`. Never measured here.
    downstream: what the paper reached with it as a backbone, for figure 4 (a): Mask R-CNN's ap_box and ap_mask (1x),
        UPerNet's miou (single scale).
    notes: keys of `Table.notes`.
    """

    name: str
    model: str | None
    options: dict[str, Any] = field(default_factory=dict)
    upernet: int | None = None
    detector: str | None = None
    size: int | tuple[int, int] = SIZE
    change: str = ""
    params: str | None = None
    gmacs: str | None = None
    throughput: float | None = None
    train_throughput: float | None = None
    scores: dict[str, str] = field(default_factory=dict)
    downstream: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def built_as(self) -> str:
        """The model and its overrides, as one would type them."""
        values = "".join(f" {name}={_value(value)}" for name, value in self.options.items())
        head = "" if self.upernet is None else f" + UPerNet({self.upernet})"
        head = head if self.detector is None else f" + {self.detector}"
        return "-" if self.model is None else self.model + values + head


@dataclass(frozen=True)
class Table:
    """A table; `scores` maps keys to headings, `notes` keys to sentences, `figure` names the picture drawn from it."""

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    scores: dict[str, str]
    notes: dict[str, str]
    figure: str | None = None

    def row(self, name: str) -> Row:
        """The row of that name; ValueError with the nearest names for another."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"table {self.name} has no row {name!r}{_nearest(name, [row.name for row in self.rows])}")

    def select(self, patterns: Sequence[str]) -> "Table":
        """The rows that any of the patterns (`swin_*`) matches; ValueError for a pattern without one."""
        for pattern in patterns:
            if not any(fnmatchcase(row.name, pattern) for row in self.rows):
                self.row(pattern)
        rows = tuple(row for row in self.rows if any(fnmatchcase(row.name, pattern) for pattern in patterns))
        return Table(self.name, self.title, self.source, rows, self.scores, self.notes, self.figure)


@cache
def load_table(name: str) -> Table:
    """The table of that name; ValueError with the nearest names for another."""
    if name not in NAMES:
        raise ValueError(f"there is no table {name!r}{_nearest(name, NAMES)}")
    stored = json.loads((files("vssm.analysis.tables") / "data" / f"{name}.json").read_text(encoding="utf-8"))
    rows = tuple(_row({"size": stored.get("size", SIZE), **row}, stored["scores"]) for row in stored["rows"])
    head = (stored["title"], stored["source"], rows, stored["scores"], stored.get("notes", {}), stored.get("figure"))
    return Table(name, *head)


def _row(stored: dict[str, Any], scores: dict[str, str]) -> Row:
    known = {key: value for key, value in stored.items() if key not in scores}
    known["name"] = known.pop("row")
    known["notes"] = tuple(known.get("notes", ()))
    if isinstance(known.get("size"), list):
        known["size"] = tuple(known["size"])
    return Row(**known, scores={key: stored[key] for key in scores if key in stored})


def _nearest(word: str, known: Sequence[str]) -> str:
    return nearest(word, known, f"; choose one of {', '.join(known)}")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(map(str, value)) + ("," if len(value) == 1 else "") + ")"
    return str(value)
