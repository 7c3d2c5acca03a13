"""Fully sharded data parallel training (`trainer.strategy fsdp`): each process keeps a part of every parameter, of its
gradient, of the optimizer's state and of the averaged weights.

Lightning's ModelParallelStrategy with torch's `fully_shard` (FSDP2), which also runs on CPUs; Lightning's strategy that
is called fsdp wraps a network by the older FullyShardedDataParallel, needs GPUs, and its averaged weights do not shard.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
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
from torch.distributed.tensor import DTensor, Shard, empty
from torch.optim import Optimizer

from vssm._sharded import is_sharded as is_in_shards
from vssm.data.batches import Batch
from vssm.train.checkpoint_files import AtomicCheckpointIO
from vssm.train.sharded_files import save_shards
from vssm.weights.sharded import read_sharded

NAME = "fsdp"


class Sharded(ModelParallelStrategy):
    """Any number of processes, and any strategy, can go on from its checkpoints.

    They are those of an unsharded training, put together by the first process, or with `in_shards` folders into which
    each process writes its part (`vssm.train.sharded_files`). Also the latter have the names of an unsharded one.

    Lightning's own counts the parameters of an optimizer as the network has them when it saves, and takes them so when
    it loads, while torch counts them as the optimizer's groups have them: with more than one group, the state of an
    unsharded training would come to the wrong parameters.
    """

    def __init__(self, in_shards: bool = False) -> None:
        super().__init__(save_distributed_checkpoint=in_shards)
        self.in_shards = in_shards
        self.saving = StateDictOptions(full_state_dict=not in_shards, cpu_offload=True)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        assert isinstance(self.checkpoint_io, AtomicCheckpointIO)
        if self.in_shards:
            save_shards(checkpoint, Path(self.broadcast(filepath)), self.checkpoint_io)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        assert isinstance(self.checkpoint_io, AtomicCheckpointIO)
        path = Path(checkpoint_path)
        if not is_in_shards(path):
            return self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)
        content = read_sharded(path, self.checkpoint_io.read_file, create=self._empty)
        self.checkpoint_io.goes_on_from(path, content.get("global_step"))
        return content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        load_state(self._network, checkpoint["state_dict"])

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The state of a sharded module as it is saved: whole, in the first process, and empty in the others; or the
        parts of each process. All have to call this."""
        return get_model_state_dict(module, options=self.saving)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `state`."""
        plain = getattr(optimizer, "optimizer", optimizer)  # of a LightningOptimizer
        named: dict[str, Any] = get_optimizer_state_dict(self._network, plain, options=self.saving)
        if not named:
            return {}
        numbers = {name: number for number, name in enumerate(_grouped(named["param_groups"]))}
        return _renamed(named, numbers)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        names = {id(parameter): name for name, parameter in self._network.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ours = [names[id(parameter)] for parameter in _grouped(optimizer.param_groups)]
            named = _renamed(state, dict(zip(_grouped(state["param_groups"]), ours, strict=True)))
            set_optimizer_state_dict(self._network, optimizer, named, options=_loading(named["state"]))

    def _empty(self, size: torch.Size, dtype: torch.dtype) -> DTensor:
        """A tensor of which each process has the part that `fully_shard` gives it."""
        mesh = next(p.device_mesh for p in self._network.parameters() if isinstance(p, DTensor))
        return empty(*size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])

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


def load_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Each process takes its parts of a state that all have read, or of which each has read them."""
    set_model_state_dict(module, dict(state), options=_loading(state))


def _loading(state: Mapping[Any, Any]) -> StateDictOptions:
    def parts(values: Mapping[Any, Any]) -> bool:
        return any(parts(v) if isinstance(v, Mapping) else isinstance(v, DTensor) for v in values.values())

    return StateDictOptions(full_state_dict=not parts(state))


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
