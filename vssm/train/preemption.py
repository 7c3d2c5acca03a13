"""SIGTERM and SIGUSR1, with which schedulers announce that a process has to go: save where it is, then leave."""

import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from vssm.train.averaging import AverageWeights
from vssm.train.callbacks import SaveCheckpoints
from vssm.train.stopping import Preempted

SIGNALS = [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class SaveOnSignal(Checkpoint):
    """On SIGTERM or SIGUSR1 finishes the optimizer step, writes last.ckpt and raises Preempted.

    In a validation the checkpoint is that of the step before it, and a resumed run begins with the validation; several
    processes, of which one may have fewer batches, validate to the end first. They need to agree, so each optimizer
    step of theirs exchanges one value. Lightning's own handler leaves without saving.
    """

    def __init__(self, saver: SaveCheckpoints, averages: AverageWeights | None):
        self.saver, self.averages = saver, averages
        self._received: int | None = None
        self._in_validation = False
        self._step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)  # Lightning puts back what was there before it

    def _note(self, number: int, frame: Any) -> None:
        self._received = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        # What follows the last batch of an epoch looks again: a checkpoint from before it would skip the validation.
        if self._told(trainer) and batch_idx + 1 < trainer.num_training_batches:
            self._leave(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and self._told(trainer):
            self._leave_validation(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.state.fn == "fit" and trainer.world_size == 1 and self._received is not None:
            if self.averages is not None:
                self.averages.on_validation_epoch_end(trainer, pl_module)  # the weights in training change back
            self._leave_validation(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ends = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
        if self._told(trainer) and not ends:
            self._leave(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Of a validation, the first batch counts as begun: from there Lightning begins it again."""
        if self._in_validation:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for part in ("total", "current"):
                progress[part] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def _told(self, trainer: L.Trainer) -> bool:
        received = self._received is not None
        return trainer.strategy.reduce_boolean_decision(received, all=False) if trainer.world_size > 1 else received

    def _leave_validation(self, trainer: L.Trainer) -> None:
        self._in_validation = True
        self.saver.save_last(trainer)
        self._leave(trainer)

    def _leave(self, trainer: L.Trainer) -> None:
        if self.saver.saved_step != trainer.global_step:
            self.saver.save_last(trainer)
        name = "a signal to another process" if self._received is None else signal.Signals(self._received).name
        raise Preempted(f"stopped by {name}; step {trainer.global_step} is saved")
