"""Counting the images that cannot be read while training."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from vssm.data.batches import Batch
from vssm.data.loaders import size_of
from vssm.data.unreadable import TooManyUnreadable, Unreadable, UnreadableLog, check_share, reasons
from vssm.settings import DataSettings


class CountUnreadable(Callback):
    """Counts the unreadable images of the present epoch; the first of all is a warning, each is a row of `file`.

    In training another image replaces each, in validation it is left out. Stops with TooManyUnreadable as soon as they
    are more than the share `allowed` of an epoch's images. Of several processes each counts its own, and all stop
    together: in training before the next step, for which each batch exchanges one value, in validation at its end.
    """

    def __init__(self, file: Path | None = None, allowed: float = DataSettings.max_unreadable):
        self.file, self.allowed = file, allowed
        self.found: dict[str, list[Unreadable]] = {"train": [], "val": []}
        self._log = UnreadableLog()
        self._stop: TooManyUnreadable | None = None  # until all processes know

    @property
    def counts(self) -> dict[str, int]:
        """How many of the training and of the validation images of the present epoch."""
        return {part: len(found) for part, found in self.found.items()}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._log = UnreadableLog(self.file, writes=trainer.is_global_zero)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.found["train"] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.found["val"] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._count(batch, "train", trainer.train_dataloader, trainer.num_training_batches)
        if trainer.world_size == 1:
            self._stop_alone()
        elif trainer.strategy.reduce_boolean_decision(self._stop is not None, all=False):
            self._gather(trainer)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        (batches,) = trainer.num_val_batches
        self._count(batch, "val", trainer.val_dataloaders, batches)
        if trainer.world_size == 1:  # of several, one may have fewer batches
            self._stop_alone()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._gather(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._gather(trainer)

    def _count(self, batch: Batch, part: Literal["train", "val"], loader: Any, batches: int | float) -> None:
        if not batch.unreadable:
            return
        self.found[part] += batch.unreadable
        self._log.add(reasons(batch.unreadable))
        assert isinstance(loader, DataLoader)
        order: Any = loader.batch_sampler  # torch's, or ours that reads ahead
        planned = min(size_of(order.sampler), int(batches) * order.batch_size)
        kind = {"train": "training", "val": "validation"}[part]
        try:
            check_share(self.found[part], planned, self.allowed, kind, self.file)
        except TooManyUnreadable as error:
            self._stop = error
        if part == "train" and len(batch.targets) == 0:
            path, reason, _ = batch.unreadable[0]
            self._stop = TooManyUnreadable(
                f"no image could be read instead of {len(batch.unreadable)} damaged {kind} images, for example "
                f"{path}: {reason}. `vssm check FOLDER` lists them"
            )

    def _stop_alone(self) -> None:
        if self._stop is not None:
            raise self._stop

    def _gather(self, trainer: L.Trainer) -> None:
        """What the other processes found; only the first one writes. Stops all when one has to."""
        if trainer.world_size == 1:
            return
        found: list[Any] = [None] * trainer.world_size
        stop = None if self._stop is None else str(self._stop)
        torch.distributed.all_gather_object(found, (self._log.known, stop))
        for known, _ in found:
            self._log.add(known)
        for number, (_, stop) in enumerate(found):
            if stop is not None:
                where = f"process {number} of {trainer.world_size}: " if number > 0 else ""
                raise TooManyUnreadable(f"{where}{stop}")
