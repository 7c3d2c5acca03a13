"""Runs side by side: what each is and how far it came, and whether two of them are the same to the last bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vssm.figures.curves import Curves
from vssm.inference.checkpoint import read_intact
from vssm.inference.run_dir import METRICS, RunDir
from vssm.report.history import History, read_history
from vssm.tasks import find_task

UNEQUAL = "images_per_second"  # the one column that two equal runs differ in


@dataclass(frozen=True)
class RunLine:
    """One run of a table; `best` is the highest score of its task, `score` the name of that column."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    history: History
    score: str

    @property
    def best(self) -> float | None:
        scores = [value for _, value in self.history.points(self.score) if value == value]
        return max(scores, default=None)

    @property
    def val_loss(self) -> float | None:
        points = self.history.points("val_loss")
        return points[-1][1] if points else None

    @property
    def skipped(self) -> int:
        return int(max((value for _, value in self.history.points("skipped_steps")), default=0))

    def curves(self, label: str) -> Curves:
        return Curves(label, *(self.history.points(column) for column in ("train_loss", "val_loss", self.score)))


def find_runs(folder: str | Path) -> list[RunLine]:
    """The runs in a folder and its subfolders, or the one that it is, by name. Raises FileNotFoundError when there is
    none, ValueError that names a file that cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; expected one with run directories of `vssm fit`")
    found = [read_run(file.parent) for file in sorted(folder.rglob(METRICS)) if RunDir(file.parent).config.exists()]
    if not found:
        raise FileNotFoundError(f"{folder} has no run directory (config.yaml and metrics.csv) in it")
    return found


def read_run(path: Path) -> RunLine:
    run = RunDir(path)
    config = run.read_config()
    score = find_task(config.get("task", "classification")).monitor
    return RunLine(path, config, run.read_environment(), read_history(run.metrics), score)


def first_difference(one: str | Path, other: str | Path) -> str | None:
    """The first of the metrics, then of the final weights (raw and averaged), that differs between two runs in any bit;
    None when nothing does. The speed is left out. Raises OSError or ValueError when one cannot be read."""
    first, second = RunDir(one), RunDir(other)
    return _in_rows(read_history(first.metrics), read_history(second.metrics)) or _in_weights(first.last, second.last)


def _in_rows(one: History, other: History) -> str | None:
    for number, (a, b) in enumerate(zip(one.rows, other.rows, strict=False), 1):
        for column in sorted({*a, *b} - {UNEQUAL}):
            x, y = a.get(column), b.get(column)
            if x != y and not (x != x and y != y):  # NaN is like NaN
                return f"metrics.csv, row {number} (step {a['step']:.0f}), {column}: {x} and {y}"
    if len(one.rows) != len(other.rows):
        return f"metrics.csv has {len(one.rows)} and {len(other.rows)} rows"
    return None


def _in_weights(one: Path, other: Path) -> str | None:
    contents = [read_intact(file) for file in (one, other)]
    for entry in ("state_dict", "current_model_state"):
        a, b = (content.get(entry, {}) for content in contents)
        for name in [*a, *(name for name in b if name not in a)]:
            if name not in a or name not in b:
                return f"last.ckpt, {entry}: {name} is in one only"
            if a[name].dtype != b[name].dtype or a[name].shape != b[name].shape:
                return f"last.ckpt, {entry}: {name} differs in type or shape"
            if _bits(a[name]) != _bits(b[name]):
                distance = (a[name].double() - b[name].double()).abs().max().item()
                return f"last.ckpt, {entry}: {name} by up to {distance:.3g}"
    return None


def _bits(tensor: torch.Tensor) -> bytes:
    """NaN is equal to itself in bits, and 0 is not -0."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
