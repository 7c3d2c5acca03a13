"""The temperature of dynamic convolutions, which falls while they train."""

from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

FINAL = 1.0


@runtime_checkable
class HasTemperature(Protocol):
    """A module with a softmax whose temperature a training lowers, `vssm.nn.DynamicFusion` for one."""

    def set_temperature(self, temperature: float) -> None: ...

    def get_temperature(self) -> float: ...


class AnnealTemperature(Callback):
    """Lowers the temperature of every module that has one, linearly from its initial value to 1 over `epochs`.

    At optimizer step t of E epochs of S steps it is T_0 + (1 - T_0) min(1, t / (E S)): high in the beginning, so that
    all experts train, then softmax's own (Chen et al. 2020, section 3.3, from 30 to 1 over ten epochs). A function of
    the step alone: a resumed run goes on exactly.
    """

    def __init__(self, model: nn.Module, epochs: float):
        self.epochs = epochs
        self.modules = {name: module for name, module in model.named_modules() if isinstance(module, HasTemperature)}
        self.initial = {name: module.get_temperature() for name, module in self.modules.items()}

    @property
    def present(self) -> float:
        """The highest of all modules."""
        return max(module.get_temperature() for module in self.modules.values())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        steps = self.epochs * trainer.num_training_batches / trainer.accumulate_grad_batches
        done = min(1.0, trainer.global_step / steps)
        for name, module in self.modules.items():
            module.set_temperature(self.initial[name] + (FINAL - self.initial[name]) * done)

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.initial = state_dict["initial"]
