"""Reasons to stop before the last epoch: weights that are not finite, and a score that no longer rises."""

import math
from collections.abc import Iterable

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from vssm.train.sharding import local

REMEDY = "a lower --lr, longer optim.warmup_epochs, a smaller trainer.gradient_clip_val or --precision 32-true may help"


class Diverged(RuntimeError):
    """The loss or the weights became NaN or infinite."""


class Preempted(RuntimeError):
    """A signal ended the training, after it was saved."""


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
