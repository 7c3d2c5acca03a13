"""Images that cannot be read: left out, counted, and named once in a file."""

import csv
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch.utils.data import Dataset

from vssm.data.files import plain_name
from vssm.data.image import UnreadableImage
from vssm.data.readahead import Keys

__all__ = [
    "COLUMNS",
    "Indexed",
    "SkipUnreadable",
    "TooManyUnreadable",
    "Unreadable",
    "UnreadableLog",
    "check_share",
    "read_unreadable",
    "reasons",
]

COLUMNS = ("path", "reason")
SHOWN = 5  # names in the message that stops a run


class Unreadable(NamedTuple):
    """Stands for a sample whose file cannot be used; `instead` is the sample to take for it, if any."""

    path: str
    reason: str
    instead: Any = None

    @classmethod
    def of(cls, error: UnreadableImage, instead: Any = None) -> "Unreadable":
        return cls(plain_name(error.path), error.reason, instead)


class Indexed(NamedTuple):
    """A sample and its position in the data set."""

    position: int
    sample: Any


class SkipUnreadable(Dataset[Indexed | Unreadable]):
    """A data set that gives Indexed samples, and an Unreadable where it would raise UnreadableImage, so that an
    evaluation goes on without it."""

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> list[Indexed | Unreadable]:
        if isinstance(indices, Keys):
            cast(Any, self.dataset).expect([*indices, *indices.ahead])
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> Indexed | Unreadable:
        try:
            return Indexed(index, self.dataset[index])
        except UnreadableImage as error:
            return Unreadable.of(error)


class TooManyUnreadable(ValueError):
    """More images than `data.max_unreadable` allows cannot be read: a fault to repair, not one to train around."""


class UnreadableLog:
    """Unreadable images by name, each once; the first of all is a warning, each is a row of `file` where there is one.

    A file that is there already is continued, as a resumed run does. `writes=False` is for the further processes of a
    run: they neither warn nor write.
    """

    def __init__(self, file: Path | None = None, writes: bool = True):
        self.file, self.writes = file, writes
        self.known: dict[str, str] = read_unreadable(file) if file is not None and file.exists() else {}

    def add(self, found: Mapping[str, str]) -> None:
        """Path and reason of each."""
        new = {path: reason for path, reason in found.items() if path not in self.known}
        if new and self.writes:
            if not self.known:
                path, reason = next(iter(new.items()))
                where = f"; all are named in {self.file}" if self.file else ""
                warnings.warn(f"{path}: {reason}. Images that cannot be read are left out{where}", stacklevel=3)
            if self.file is not None:
                _append(self.file, new)
        self.known |= new


def check_share(
    unreadable: Sequence[Unreadable], planned: int, allowed: float, kind: str, listed: Path | None = None
) -> None:
    """Raises TooManyUnreadable, with the list, when more than the share `allowed` (`data.max_unreadable`) of the
    `planned` images ("training", "validation", ...) cannot be read. `listed` is the file that names all, if any."""
    if len(unreadable) <= allowed * planned:
        return
    shown = "; ".join(f"{one.path}: {one.reason}" for one in unreadable[:SHOWN])
    more = f"; and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
    where = f", all in {listed}" if listed is not None else ""
    raise TooManyUnreadable(
        f"{len(unreadable)} of {planned} {kind} images cannot be read, more than data.max_unreadable {allowed:g} "
        f"allows ({shown}{more}{where}); repair or remove them (`vssm check` lists all), or allow more with "
        f"--data.max_unreadable"
    )


def read_unreadable(file: Path) -> dict[str, str]:
    """Path and reason of every image that a run could not read; a line cut off by a killed process is left out."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        if rows.fieldnames is not None and list(rows.fieldnames) != list(COLUMNS):
            raise ValueError(f"{file} has the columns {rows.fieldnames}, not {list(COLUMNS)}; remove or repair it")
        return {row["path"]: row["reason"] for row in rows if row["reason"] is not None}


def reasons(unreadable: Iterable[Unreadable]) -> dict[str, str]:
    return {one.path: one.reason for one in unreadable}


def _append(file: Path, rows: Mapping[str, str]) -> None:
    """In one write, so that a killed process leaves whole lines."""
    text = io.StringIO()
    writer = csv.writer(text)
    if not file.exists():
        writer.writerow(COLUMNS)
    writer.writerows(rows.items())
    with file.open("a", newline="", encoding="utf-8") as stream:
        stream.write(text.getvalue())
