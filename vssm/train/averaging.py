"""The exponential moving average of the weights, which is what gets validated and saved."""

import itertools
from collections.abc import Iterator
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vssm.train.module import TrainingModule
from vssm.train.sharding import Sharded, is_sharded, load_state, local, shard

Pair = tuple[Tensor, Tensor]


class AverageWeights(WeightAveraging):
    """After optimizer step t, average <- d * average + (1 - d) * weights with d = min(decay, (1 + t) / (10 + t)).

    So the average always covers about the last tenth of the training, at most 1 / (1 - decay) steps: a short training
    is not evaluated by its initial weights. The first step copies. With `warmup=False` d is `decay` at every step and
    the average begins with the initial weights, as in the official codes (timm's ModelEma). A temperature that falls
    during training is copied: its average would lag behind.

    Lightning's own EMAWeightAveraging takes one tensor at a time and walks through the modules at every step. Here the
    tensors are listed once and averaged in one call; `benchmarks/train_loop.py` shows what is left of the cost. Buffers
    that are not floating-point (counters) are copied.
    """

    def __init__(self, decay: float, warmup: bool = True):
        super().__init__()
        self.decay, self.warmup = decay, warmup
        self._listed: tuple[list[Pair], list[Pair]] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning's own would not shard the copy."""
        if stage != "fit":
            return
        self._average_model = AveragedModel(pl_module, pl_module.device, use_buffers=True)
        trainer.precision_plugin.convert_module(self.module)  # as the strategy will convert the module itself
        if is_sharded(trainer):
            shard(self.module.task.model)  # type: ignore[union-attr, arg-type]

    @property
    def module(self) -> nn.Module:
        """A copy of the module in training with the averaged weights, in evaluation mode; while a validation runs, with
        the weights of the latest step instead: Lightning exchanges them."""
        assert self._average_model is not None
        return self._average_model.module

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.module.to(pl_module.device).eval()  # strategies differ in when they move a module to its device

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self._latest_update_step:  # gradients are being accumulated
            return
        if getattr(pl_module, "skipped_step", -1) == trainer.global_step:  # it left the weights as they were
            return
        assert self._average_model is not None
        if self._listed is None:
            self._listed = _pairs(self._average_model.module, pl_module)
        averaged, copied = self._listed
        step = trainer.global_step  # n_averaged is the same, but reading it would wait for the device
        if self._latest_update_step == 0 and self.warmup:
            copied = [*averaged, *copied]
        else:
            decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
            average_all = get_ema_multi_avg_fn(decay)
            average_all([average for average, _ in averaged], [weight for _, weight in averaged], step)
        for average, weight in copied:
            average.copy_(weight)
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """As Lightning's, where the tensors are sharded too."""
        if not is_sharded(trainer):
            return super().on_save_checkpoint(trainer, pl_module, checkpoint)
        assert self._average_model is not None
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        assert isinstance(trainer.strategy, Sharded)
        checkpoint["state_dict"] = trainer.strategy.state(self.module)
        checkpoint["averaging_state"] = {"n_averaged": self._average_model.n_averaged}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not is_sharded(trainer):
            return super().on_load_checkpoint(trainer, pl_module, checkpoint)
        assert self._average_model is not None
        load_state(self.module, checkpoint["state_dict"])
        load_state(pl_module, checkpoint["current_model_state"])
        self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])


def _pairs(average: nn.Module, model: nn.Module) -> tuple[list[Pair], list[Pair]]:
    """(average, weight) of the tensors to average, and of those to copy: the parts of this process where they are
    sharded. They share memory with the modules."""
    found: tuple[list[Pair], list[Pair]] = ([], [])
    for (name, ours), theirs in zip(_tensors(average), _tensors(model), strict=True):
        copied = not ours.is_floating_point() or name.rpartition(".")[2] == "temperature"
        found[1 if copied else 0].append((local(ours), local(theirs[1])))
    return found


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


class ValidateRaw(Callback):
    """Validates the weights of the latest step too, in the same pass: every metric gets a second with `_raw`."""

    def __init__(self, averages: AverageWeights):
        self.averages = averages

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn == "fit":
            pl_module.beside = (cast(TrainingModule, self.averages.module),)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        for raw in pl_module.beside:
            found = raw.metrics.compute().logged()
            pl_module.log_dict({f"{name}_raw": value for name, value in found.items()})
            raw.metrics.reset()
        pl_module.beside = ()
