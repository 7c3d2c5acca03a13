"""Reasons to stop before the last epoch: a non-finite loss, and a score that no longer rises."""

import math
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor

from vssm.train.module import TrainingModule
from vssm.train.ranks import mean_over_ranks
from vssm.train.sharding import local

REMEDY = "a lower --lr, longer optim.warmup_epochs, a smaller trainer.gradient_clip_val or --precision 32-true may help"


class Diverged(RuntimeError):
    """The loss or the weights became NaN or infinite."""


class StopAtNonFinite(Callback):
    """Raises Diverged at the first training loss that is NaN or infinite, naming epoch, batch and step.

    On the CPU each loss is checked as it comes. Elsewhere that would make the device wait after each step, so the
    losses are checked together every `every_n_batches`, and before anything is validated or saved. So it is with
    several processes, which exchange their losses and stop together: one that stopped alone would leave the others
    waiting.
    """

    def __init__(self, every_n_batches: int = 50):
        self.every_n_batches = every_n_batches
        self._pending: list[tuple[int, int, Tensor]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        loss = pl_module.latest_loss
        if loss is None:
            return
        self._pending.append((batch_idx, trainer.global_step, loss))
        at_once = loss.device.type == "cpu" and trainer.world_size == 1
        if at_once or len(self._pending) >= self.every_n_batches:
            self._look(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        pending, self._pending = self._pending, []
        losses = mean_over_ranks(trainer, torch.stack([loss for *_, loss in pending])).tolist() if pending else []
        for (batch_idx, step, _), loss in zip(pending, losses, strict=True):
            if not math.isfinite(loss):
                raise Diverged(
                    f"the training loss became {loss} in epoch {trainer.current_epoch + 1}, batch {batch_idx + 1} of "
                    f"{trainer.num_training_batches} (optimizer step {step}): {REMEDY}"
                )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every floating-point tensor, of a sharded one the part that is here, is free of NaN and infinity; reduced
    to one value per tensor."""
    parts = [local(tensor) for tensor in tensors if tensor.is_floating_point()]
    floating = [part for part in parts if part.numel() > 0]  # of a small tensor some processes have nothing
    return math.isfinite(float(torch.nn.utils.get_total_norm(floating, norm_type=math.inf)))


class StopEarly(EarlyStopping):
    """Ends training after `patience` validations without a better score. A resumed run counts on, and one that had
    ended this way does not train again."""

    def __init__(self, monitor: str, patience: int):
        super().__init__(monitor, patience=patience, mode="max", check_finite=False, check_on_train_epoch_end=False)

    @property
    def message(self) -> str | None:
        """Why training ended, if it was for this."""
        if self.wait_count < self.patience:
            return None
        name = self.monitor.removeprefix("val_").replace("top", "top-")
        return f"stopped early: no better {name} than {float(self.best_score):.2%} in {self.wait_count} validations"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
