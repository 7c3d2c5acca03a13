"""What a classifier learns besides labels: the answers of its own averaged weights (MESA), or of another model."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vssm.ops.tensors import at_least_float32
from vssm.settings import OptimSettings
from vssm.train.averaging import AverageWeights
from vssm.train.teacher import Teacher


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over the batch of -sum_k softmax(teacher / T)_k log softmax(logits / T)_k. Both (B, K) -> a scalar, at
    least float32.

    The KL divergence of Du et al. 2022 (eq. 6) but for the teacher's entropy, which has no gradient.
    """
    targets = (_exact(teacher) / temperature).softmax(-1)
    return F.cross_entropy(_exact(logits) / temperature, targets)


def distillation_loss(logits: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """Both (B, K) -> a scalar. soft: T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean over the batch (Hinton
    et al. 2015, section 2). hard: cross entropy with the teacher's first class (Touvron et al. 2021, eq. 3)."""
    if kind == "hard":
        return F.cross_entropy(_exact(logits), teacher.argmax(-1))
    ours = (_exact(logits) / temperature).log_softmax(-1)
    theirs = (_exact(teacher) / temperature).log_softmax(-1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def _exact(values: Tensor) -> Tensor:
    return values.to(at_least_float32(values))


class _Guide(Callback):
    """Adds itself to the losses of the learner while a training runs, and never to what is copied or saved."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trainer = trainer
        guides: list[Any] = pl_module.task.guides  # type: ignore[assignment]
        guides.append(self)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        guides: list[Any] = pl_module.task.guides  # type: ignore[assignment]
        if self in guides:
            guides.remove(self)

    def __call__(self, loss: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        """The loss of a batch with what the guide adds. images (B, C, H, W), mixed where the batch is."""
        raise NotImplementedError


class LearnFromAverage(_Guide):
    """MESA (Du et al. 2022, section 4.2): from epoch `mesa_start_epoch` (counted from 0) on, `mesa_weight` times the
    soft cross entropy with the answers of the averaged weights to the same (mixed) images is added to the loss.

    The teacher is the network of `AverageWeights` itself, in evaluation mode: the average after the latest optimizer
    step. It is in every checkpoint, so a resumed run goes on exactly.
    """

    def __init__(self, averages: AverageWeights, optim: OptimSettings):
        self.averages, self.optim = averages, optim

    def __call__(self, loss: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        if self.trainer.current_epoch < self.optim.mesa_start_epoch:
            return loss
        with torch.no_grad():
            teacher = self.averages.module.task.model(images)  # type: ignore[operator]
        return loss + self.optim.mesa_weight * soft_cross_entropy(logits, teacher, self.optim.mesa_temperature)


class LearnFromTeacher(_Guide):
    """(1 - w) times the loss and w times the `distillation_loss`, w being `distill_weight`."""

    def __init__(self, teacher: Teacher, optim: OptimSettings):
        self.teacher, self.optim = teacher, optim

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.teacher.to(pl_module.device)

    def __call__(self, loss: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        optim = self.optim
        added = distillation_loss(logits, self.teacher(images), optim.distill_kind, optim.distill_temperature)
        return (1 - optim.distill_weight) * loss + optim.distill_weight * added
