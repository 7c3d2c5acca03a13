"""Fully sharded data parallel training (`trainer.strategy fsdp`): each process keeps a part of every parameter, of its
gradient, of the optimizer's state and of the averaged weights.

Lightning's ModelParallelStrategy with torch's `fully_shard` (FSDP2), which also runs on CPUs; Lightning's strategy that
is called fsdp wraps a network by the older FullyShardedDataParallel, needs GPUs, and its averaged weights do not shard.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vssm.data.batches import Batch

NAME = "fsdp"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Sharded(ModelParallelStrategy):
    """Checkpoints are those of an unsharded training, put together by the first process: any number of processes, and
    any strategy, can go on from them.

    Lightning's own counts the parameters of an optimizer as the network has them when it saves, and takes them so when
    it loads, while torch counts them as the optimizer's groups have them: with more than one group, the state of an
    unsharded training would come to the wrong parameters.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load_whole_state(self._network, checkpoint["state_dict"])

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole, in the first process; empty in the others."""
        plain = getattr(optimizer, "optimizer", optimizer)  # of a LightningOptimizer
        named: dict[str, Any] = get_optimizer_state_dict(self._network, plain, options=WHOLE)
        if not named:
            return {}
        numbers = {name: number for number, name in enumerate(_grouped(named["param_groups"]))}
        return _renamed(named, numbers)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        names = {id(parameter): name for name, parameter in self._network.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ours = [names[id(parameter)] for parameter in _grouped(optimizer.param_groups)]
            named = _renamed(state, dict(zip(_grouped(state["param_groups"]), ours, strict=True)))
            set_optimizer_state_dict(self._network, optimizer, named, options=StateDictOptions(full_state_dict=True))

    @property
    def _network(self) -> nn.Module:
        assert self.model is not None
        return self.model


def _grouped(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [parameter for group in groups for parameter in group["params"]]


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """The state of an optimizer under other names of its parameters."""
    groups = [{**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[key]: value for key, value in state["state"].items()}, "param_groups": groups}


def is_sharded(trainer: L.Trainer) -> bool:
    return isinstance(trainer.strategy, Sharded)


def shard(model: nn.Module) -> None:
    """Shards a network over all processes, in place. What is called a block (of this package, of timm) is gathered and
    dropped by itself when it runs, forward and backward; the rest with the network as a whole.

    Also the latter is dropped after a forward: what averages or saves the parameters always finds the shards.
    """
    for module in reversed([*model.modules()]):
        if module is not model and type(module).__name__.endswith(("Block", "Bottleneck")):
            fully_shard(module, reshard_after_forward=True)
    fully_shard(model, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """The part of it that this process has, which shares its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state of a sharded module, put together in the memory of the first process; empty in the others. All have to
    call this."""
    return get_model_state_dict(module, options=WHOLE)


def load_whole_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Each process takes its parts of a state that all have read."""
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))


class KeepStep(Callback):
    """Every forward of a sharded network needs all processes. One that has fewer validation batches than another takes
    its part in the missing ones, with images that count for nothing."""

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        (own,) = trainer.num_val_batches
        if batch_idx + 1 < own:
            return
        most = trainer.datamodule.most_val_batches(trainer)  # type: ignore[attr-defined]
        for step in range(int(own), most):
            pl_module.validation_step(Batch(torch.empty(0), torch.empty(0, dtype=torch.long)), step)
