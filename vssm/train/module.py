"""The LightningModule: a task, its optimizer, and randomness that is a function of the step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from vssm.data.batches import Batch
from vssm.data.sampling import seed_all
from vssm.settings import Settings
from vssm.tasks.task import Learner, Metrics
from vssm.train.optim import create_optimizer, create_schedule, scaled
from vssm.train.sharding import is_sharded, shard


class Recorder(Protocol):
    """Sees every training batch and its loss."""

    def before(self, batch: Batch, batch_idx: int, first: bool) -> None: ...

    def after(self, loss: Tensor) -> None: ...


class TrainingModule(L.LightningModule):
    """Trains a task's learner; its metrics gather the validation.

    `description` (plain types) is put under "vssm" in every checkpoint: enough to rebuild model and preprocessing,
    with the images that the batches of all processes have together, in which the position in an epoch is counted.
    `frozen_norms` keep their statistics: they stay in evaluation mode. `infer` gives the outputs that are validated;
    the network's own when it is not given.
    """

    def __init__(
        self,
        learner: Learner,
        metrics: Metrics,
        settings: Settings,
        description: dict[str, Any],
        frozen_norms: Sequence[nn.Module] = (),
        infer: Callable[[Any], Any] | None = None,
    ):
        super().__init__()
        self.task = learner  # under this name its weights stand in every checkpoint
        self.metrics = metrics
        self.settings = settings
        self.description = description
        self.frozen_norms = tuple(frozen_norms)
        self._infer = (infer or learner.model,)  # in a tuple: the weights stand in a checkpoint once
        self.beside: tuple[TrainingModule, ...] = ()  # modules of other weights that are validated on the same batches
        self.recorder: Recorder | None = None
        self.skipped_steps = 0  # so far, because they were not finite
        self.skipped_step = -1  # the latest of them, counted as `trainer.global_step` after it
        self.latest_loss: Tensor | None = None
        self.latest_outputs: Any = None
        self._spare_images: Any = None  # of a sharded network, for a forward that is of use to other processes only
        self.train()  # Lightning keeps the modes that it finds

    def configure_model(self) -> None:
        if is_sharded(self.trainer):
            self.trainer.precision_plugin.convert_module(self)  # Lightning does so after the parameters were sharded
            shard(self.task.model)

    def train(self, mode: bool = True) -> "TrainingModule":
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Mixing, stochastic depth and dropout draw from generators seeded here: a resumed step repeats the draws.
        key = (self.settings.seed, self.current_epoch, batch_idx, self.global_rank)
        seed_all(*key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(hash(key) & 0xFFFF_FFFF)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if is_sharded(self.trainer):
            self._spare_images = batch.images
        if self.recorder is not None:
            self.recorder.before(batch, batch_idx, batch_idx % self.trainer.accumulate_grad_batches == 0)
        loss, self.latest_outputs = self.task.training_step(self.laid_out(batch.images), batch.targets)
        self.latest_loss = loss.detach()
        if self.recorder is not None:
            self.recorder.after(self.latest_loss)
        return loss

    def running(self, batch: Batch) -> Mapping[str, Tensor]:
        """Means over the latest training batch, by name."""
        return self.task.running(self.latest_outputs, batch.targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for module in (self, *self.beside):
            (infer,) = module._infer
            if len(batch.targets) > 0:
                module.metrics.update(infer(self.laid_out(batch.images)), batch)
            elif self._spare_images is not None:  # none of the batch could be read
                infer(self.laid_out(self._spare_images))

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute().logged())
        self.metrics.reset()

    def configure_optimizers(self):
        trainer = self.trainer
        images = self.settings.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        optim = scaled(self.settings.optim, images)
        per_epoch = math.ceil(trainer.datamodule.train_batches / trainer.accumulate_grad_batches)  # type: ignore[attr-defined]
        total = per_epoch * self.settings.trainer.max_epochs
        if trainer.max_steps >= 0:
            total = min(total, trainer.max_steps)
        # By itself torch takes one tensor at a time on the CPU. (With mixed precision Lightning does not clip the
        # gradients of a fused optimizer.)
        fused = self.device.type == "cpu" and "mixed" not in str(trainer.precision)
        optimizer = create_optimizer(self.task.model, optim, fused=fused or None)
        schedule = create_schedule(optimizer, optim, total, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        images = self.settings.data.batch_size * self.trainer.world_size
        checkpoint["vssm"] = self.description | {"images_per_batch": images}

    def laid_out(self, images: Any) -> Any:
        """Images in the memory format of the settings."""
        if self.settings.model.channels_last and isinstance(images, Tensor):
            return images.contiguous(memory_format=torch.channels_last)
        return images
