"""From settings to a lightning.Trainer."""

import inspect
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vssm._words import nearest
from vssm.settings import Settings, TrainerSettings
from vssm.train import sharding
from vssm.train.callbacks import SaveCheckpoints
from vssm.train.checkpoint_files import AtomicCheckpointIO

# What a run directory and exact resumption depend on.
_OURS = (
    "barebones",
    "callbacks",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "fast_dev_run",
    "logger",
    "model_registry",
    "num_sanity_val_steps",
    "overfit_batches",
    "plugins",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
)
# Settings of the trainer that are no argument of lightning.Trainer.
_NOT_LIGHTNING = ("args", "sharded_checkpoints")


def create_trainer(settings: Settings, callbacks: Sequence[Callback] = ()) -> L.Trainer:
    """A silent Trainer that leaves the order of samples to us and replaces checkpoints atomically.

    Raises ValueError for what Lightning refuses, a missing GPU among it, and for `trainer.args` that it does not have.
    """
    more = settings.trainer.args
    _check_arguments(more)
    _check_device(settings.trainer)
    # A profiler reports through this logger.
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO if "profiler" in more else logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # a line for each process that begins
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # True of Lightning's own samplers; ours start where the checkpoint says.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    # torchmetrics has gathered the values from all processes by then.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen norms
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    has_bar = any(hasattr(callback, "enable") for callback in callbacks)
    named = {name: value for name, value in vars(settings.trainer).items() if name not in _NOT_LIGHTNING}
    plugins: list[Any] = [AtomicCheckpointIO(settings.keep_last)]
    if settings.trainer.strategy == sharding.NAME:
        named |= {"strategy": sharding.Sharded(settings.trainer.sharded_checkpoints), "inference_mode": False}
        if more.get("sync_batchnorm"):
            raise ValueError("trainer.args.sync_batchnorm has no effect with trainer.strategy fsdp; choose one")
        if settings.trainer.precision == "64-true":  # by that name Lightning refuses it with this strategy
            named["precision"] = None
            plugins.append(DoublePrecision())
    try:
        trainer = L.Trainer(
            **(more | named),
            callbacks=list(callbacks),
            plugins=plugins,
            logger=False,
            enable_checkpointing=any(isinstance(c, SaveCheckpoints) for c in callbacks),
            enable_progress_bar=has_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (AttributeError, MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"{asked_for(settings.trainer)}: {' '.join(str(error).split())}") from error
    for timer in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(timer, Timer) and (timer.time_remaining() or 0) <= 0:
            raise ValueError(f"trainer.args.max_time is {more.get('max_time')}, which leaves no time to train")
    return trainer


def asked_for(chosen: TrainerSettings) -> str:
    """What may have been refused, for the beginning of a message."""
    usual = TrainerSettings()
    unusual = {
        n: v for n, v in vars(chosen).items() if n not in _NOT_LIGHTNING and v != getattr(usual, n)
    } | chosen.args
    listed = ", ".join(f"{name}={value}" for name, value in unusual.items())
    return f"Lightning refuses these trainer settings ({listed})"


def _check_device(chosen: TrainerSettings) -> None:
    present = torch.accelerator.current_accelerator(check_available=True)
    if chosen.accelerator not in ("auto", "cpu") and present is None:
        raise ValueError(f"trainer.accelerator is {chosen.accelerator}, but torch finds none here; choose cpu or auto")
    if chosen.precision in ("16-mixed", "16") and (chosen.accelerator == "cpu" or present is None):
        # Lightning would take bf16-mixed instead, with a warning.
        raise ValueError("trainer.precision is 16-mixed, which needs a GPU; on the CPU choose bf16-mixed or 32-true")


def _check_arguments(more: dict[str, Any]) -> None:
    known = set(inspect.signature(L.Trainer).parameters)
    settings = TrainerSettings.__dataclass_fields__.keys()
    for name in more:
        if name in settings:
            raise ValueError(f"trainer.args.{name} is a setting of its own: trainer.{name}")
        if name in _OURS:
            raise ValueError(f"trainer.args.{name} cannot be changed: vssm chooses it")
        if name not in known:
            near = nearest(name, known - set(_OURS))
            raise ValueError(f"trainer.args.{name} is not a lightning.Trainer argument{near}")
