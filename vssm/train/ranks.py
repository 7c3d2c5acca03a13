"""What the processes of one training have to agree on beside their gradients."""

from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def mean_over_ranks(trainer: L.Trainer, value: Tensor) -> Tensor:
    """The mean over the processes of a tensor that each has, in one exchange; all of them have to call this.

    As their batches are of one size, that of the losses is the loss of the global batch.
    """
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")  # type: ignore[return-value]


class ShareStatistics(Callback):
    """After each batch the running statistics of norms that train become their mean over the processes.

    So all validate the same network, and the first one saves what the others have too. (DistributedDataParallel copies
    those of the first process before each forward in training; after the last one of an epoch they differ again.) To be
    put before the averaged weights, which average the statistics as well.
    """

    def __init__(self) -> None:
        self._norms: list[nn.Module] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size == 1:
            return
        if self._norms is None:
            norms = [norm for norm in pl_module.modules() if isinstance(norm, _NormBase)]
            self._norms = [norm for norm in norms if norm.track_running_stats]
        found = [statistic for norm in self._norms if norm.training for statistic in _statistics(norm)]
        if not found:
            return
        together = torch.cat([statistic.flatten() for statistic in found])
        dist.all_reduce(together)
        together /= trainer.world_size
        for statistic, mean in zip(found, together.split([statistic.numel() for statistic in found]), strict=True):
            statistic.copy_(mean.view_as(statistic))


def _statistics(norm: nn.Module) -> list[Tensor]:
    return [norm.running_mean, norm.running_var]  # type: ignore[list-item]
