"""The story that metrics.csv tells, also when its writer was killed in the middle of a line."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Points = list[tuple[float, float]]
REQUIRED = {"epoch", "step"}


@dataclass(frozen=True)
class History:
    """Rows by column name; a cell that the file leaves empty is absent. `dropped` counts lines that were not whole."""

    rows: tuple[dict[str, float], ...]
    dropped: int = 0

    @property
    def steps(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def epochs(self) -> int:
        """Epochs begun."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    def points(self, column: str, against: str = "step") -> Points:
        """(x, y) of every row that has `column`, NaN and infinity included."""
        return [(row[against], row[column]) for row in self.rows if column in row]

    def first_not_finite(self) -> tuple[str, int] | None:
        """The first loss that is NaN or infinite, and its step."""
        for row in self.rows:
            for column in ("train_loss", "val_loss"):
                if not math.isfinite(row.get(column, 0.0)):
                    return column, int(row["step"])
        return None

    def images_per_second(self) -> float | None:
        """The median over the run: the first rows warm up, and a busy machine slows some."""
        speeds = [speed for _, speed in self.points("images_per_second") if math.isfinite(speed)]
        return float(np.median(speeds)) if speeds else None

    def seconds(self, images_per_step: int) -> float | None:
        """Time spent in training steps, from the logged speeds; None when there are none."""
        total, before = 0.0, 0.0
        for step, speed in self.points("images_per_second"):
            if math.isfinite(speed) and speed > 0:
                total += (step - before) * images_per_step / speed
            before = step
        return total or None


def read_history(path: Path) -> History:
    """Reads a metrics.csv, whole lines only. Raises FileNotFoundError or ValueError that names the file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; `vssm fit` writes it when training starts")
    text = path.read_bytes().decode("utf-8", "replace")
    lines = text.splitlines(keepends=True)
    header = next(csv.reader(lines[:1]), [])
    if not set(header) >= REQUIRED:
        raise ValueError(f"{path} is not a metrics.csv of `vssm fit`: its first line lacks the columns epoch and step")
    found = [_row(header, line) for line in lines[1:] if line.strip()]
    rows = tuple(row for row in found if row is not None)
    return History(rows, len(found) - len(rows))


def _row(header: list[str], line: str) -> dict[str, float] | None:
    """None for a line that was cut off (its end is missing) or holds something else than numbers."""
    if not line.endswith("\n"):
        return None
    try:
        (cells,) = csv.reader([line])
        row = {name: float(cell) for name, cell in zip(header, cells, strict=True) if cell}
    except (ValueError, csv.Error):
        return None
    return row if row.keys() >= REQUIRED and all(math.isfinite(row[name]) for name in REQUIRED) else None
