"""The exponential moving average of the weights, which is what gets validated and saved."""

import itertools
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Pair = tuple[Tensor, Tensor]


class AverageWeights(WeightAveraging):
    """After optimizer step t, average <- d * average + (1 - d) * weights with d = min(decay, (1 + t) / (10 + t)).

    So the average always covers about the last tenth of the training, at most 1 / (1 - decay) steps: a short training
    is not evaluated by its initial weights. The first step copies.

    Lightning's own EMAWeightAveraging takes one tensor at a time and walks through the modules at every step. Here the
    tensors are listed once and averaged in one call; `benchmarks/train_loop.py` shows what is left of the cost. Buffers
    that are no floating-point numbers (counters) are copied.
    """

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self._listed: tuple[list[Pair], list[Pair]] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self._latest_update_step:  # gradients are being accumulated
            return
        assert self._average_model is not None
        if self._listed is None:
            self._listed = _pairs(self._average_model.module, pl_module)
        averaged, copied = self._listed
        step = trainer.global_step  # n_averaged is the same, but reading it would wait for the device
        if step == 1:
            copied = [*averaged, *copied]
        else:
            average_all = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
            average_all([average for average, _ in averaged], [weight for _, weight in averaged], step)
        for average, weight in copied:
            average.copy_(weight)
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step


def _pairs(average: nn.Module, model: nn.Module) -> tuple[list[Pair], list[Pair]]:
    """(average, weight) of every floating-point tensor, and of every other one. They share memory with the modules."""
    found: tuple[list[Pair], list[Pair]] = ([], [])
    for ours, theirs in zip(_tensors(average), _tensors(model), strict=True):
        found[0 if ours.is_floating_point() else 1].append((ours.detach(), theirs.detach()))
    return found


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())
