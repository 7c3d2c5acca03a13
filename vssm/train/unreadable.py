"""Images that cannot be read: left out, counted, and named once in the run directory."""

import csv
import io
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from vssm.data.batches import Batch

COLUMNS = ("path", "reason")


class TooManyUnreadable(ValueError):
    """More than half of the images cannot be read: that is a fault to repair, not one to train around."""


class CountUnreadable(Callback):
    """Counts the unreadable images of the present epoch; the first of all is a warning, each is a row of `file`.

    In training another image takes the place of each, in validation it is left out. Stops with TooManyUnreadable as
    soon as they are more than half of an epoch's images.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self.counts = {"train": 0, "val": 0}
        self._known: dict[str, str] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.file is not None and self.file.exists():  # a resumed run
            self._known = read_unreadable(self.file)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.counts["train"] = 0

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.counts["val"] = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._count(trainer, batch, "train", trainer.train_dataloader, trainer.num_training_batches)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        (batches,) = trainer.num_val_batches
        self._count(trainer, batch, "val", trainer.val_dataloaders, batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._gather(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._gather(trainer)

    def _count(
        self, trainer: L.Trainer, batch: Batch, part: Literal["train", "val"], loader: Any, batches: int | float
    ) -> None:
        if not batch.unreadable:
            return
        self.counts[part] += len(batch.unreadable)
        self._name({path: reason for path, reason, _ in batch.unreadable}, trainer)
        assert isinstance(loader, DataLoader)
        assert loader.batch_size is not None
        planned = min(len(loader.sampler), int(batches) * loader.batch_size)  # type: ignore[arg-type]
        if 2 * self.counts[part] > planned or (part == "train" and len(batch.labels) == 0):
            path, reason, _ = batch.unreadable[0]
            kind = {"train": "training", "val": "validation"}[part]
            raise TooManyUnreadable(
                f"{self.counts[part]} of {planned} {kind} images cannot be read, for example {path}: {reason}. "
                "`vssm check FOLDER` lists them"
            )

    def _name(self, found: dict[str, str], trainer: L.Trainer) -> None:
        new = {path: reason for path, reason in found.items() if path not in self._known}
        if new and not self._known and trainer.is_global_zero:
            path, reason = next(iter(new.items()))
            where = f"; all are named in {self.file}" if self.file else ""
            warnings.warn(f"{path}: {reason}. Images that cannot be read are left out{where}", stacklevel=2)
        self._known |= new
        if new and self.file is not None and trainer.is_global_zero:
            _append(self.file, new)

    def _gather(self, trainer: L.Trainer) -> None:
        """What the other processes found; only the first one writes."""
        if trainer.world_size > 1:
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, self._known)
            for known in found:
                self._name(known, trainer)


def read_unreadable(file: Path) -> dict[str, str]:
    """Path and reason of every image that a run could not read; a line cut off by a killed process is left out."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        if rows.fieldnames is not None and list(rows.fieldnames) != list(COLUMNS):
            raise ValueError(f"{file} has the columns {rows.fieldnames}, not {list(COLUMNS)}; remove or repair it")
        return {row["path"]: row["reason"] for row in rows if row["reason"] is not None}


def _append(file: Path, rows: dict[str, str]) -> None:
    """In one write, so that a killed process leaves whole lines."""
    text = io.StringIO()
    writer = csv.writer(text)
    if not file.exists():
        writer.writerow(COLUMNS)
    writer.writerows(rows.items())
    with file.open("a", newline="", encoding="utf-8") as stream:
        stream.write(text.getvalue())
