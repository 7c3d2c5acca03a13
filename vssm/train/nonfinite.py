"""Steps with a loss or gradients that are NaN or infinite: skipped, counted, and kept in a file to look into."""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vssm._writing import replacing
from vssm.data.batches import Batch
from vssm.data.padded import PaddedImages
from vssm.data.sampling import generators_kept, seed_all
from vssm.inference.run_dir import RunDir
from vssm.train.module import TrainingModule
from vssm.train.sharding import is_sharded, local
from vssm.train.stopping import REMEDY, Diverged

FORMAT = 1
MAX_FILES = 3  # per run and process; each is as large as the weights and the batches of a step


class SkipNonFinite(Callback):
    """Leaves out every optimizer step whose loss (of any batch accumulated) or gradients are NaN or infinite.

    Weights, optimizer and averages stay as they were, and buffers go back to what they were before the step. The
    schedule goes on: a skipped step counts as one. Raises Diverged after more than `allowed` skipped steps in a row,
    and at the end of an epoch of which every step was skipped. The first step of each series, three per run at most, is
    written to RUN/nonfinite-STEP.pt for `vssm replay`.

    With 16-mixed, gradients that overflow are handled by the GradScaler, which leaves out the step itself and lowers
    its scale: only the loss is looked at. The loss and the norm of the gradients are read once per optimizer step,
    which makes a GPU wait for them. Several processes skip together.
    """

    def __init__(self, run: RunDir, allowed: int):
        self.run, self.allowed = run, allowed
        self.total = self.in_a_row = 0
        self._batches: list[tuple[int, Batch]] = []
        self._losses: list[Tensor] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._reason = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.recorder, pl_module.skipped_steps = self, self.total
        self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.recorder = None

    def before(self, batch: Batch, batch_idx: int, first: bool) -> None:
        """Called with each training batch before the network sees it; `first` of an optimizer step's batches."""
        if first:
            self._batches, self._losses = [], []
            for buffer, kept in self._buffers:
                kept.copy_(buffer)
        self._batches.append((batch_idx, _copied(batch)))

    def after(self, loss: Tensor) -> None:
        self._losses.append(loss)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        reason = self._what_is_wrong(() if scaled else pl_module.parameters())
        skip = reason is not None
        if trainer.world_size > 1:
            skip = trainer.strategy.reduce_boolean_decision(skip, all=False)
        if not skip:
            self.in_a_row = 0
            return
        self._reason = reason or "the loss became NaN or infinite in another process"
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        pl_module.skipped_steps, pl_module.skipped_step = self.total, trainer.global_step + 1
        with torch.no_grad():
            for buffer, kept in self._buffers:
                buffer.copy_(kept)
        if reason is not None and self.in_a_row == 1 and not is_sharded(trainer):  # else no process has all weights
            self._write(trainer, pl_module)
        if not scaled:  # else the scaler has seen that they are not finite
            optimizer.zero_grad(set_to_none=True)  # an optimizer passes over parameters without gradients

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.in_a_row > self.allowed and trainer.global_step == pl_module.skipped_step:
            raise Diverged(
                f"{self._reason} in epoch {trainer.current_epoch + 1}, batch {batch_idx + 1} of "
                f"{trainer.num_training_batches} (optimizer step {trainer.global_step}){self._history()}: {REMEDY}"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        if 0 < steps <= self.in_a_row:
            raise Diverged(
                f"every optimizer step of epoch {trainer.current_epoch + 1} ({steps}) was skipped, the last because "
                f"{self._reason}{self._history()}: {REMEDY}"
            )

    def _history(self) -> str:
        files = sorted(self.run.path.glob("nonfinite-*.pt"), key=lambda file: file.stat().st_mtime_ns)
        row = f", and so in {self.in_a_row} steps in a row" if self.in_a_row > 1 else ""
        return f"{row}; `vssm replay {files[-1]}` shows where it began" if files else row

    def _what_is_wrong(self, parameters: Any) -> str | None:
        losses = torch.stack([loss.detach().float() for loss in self._losses])
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        gradients = [gradient for gradient in gradients if gradient.numel() > 0]
        norm = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf, error_if_nonfinite=False)
        *losses, norm = torch.cat([losses, norm.float().to(losses.device).reshape(1)]).tolist()
        for loss in losses:
            if not math.isfinite(loss):
                return f"the training loss became {loss}"
        return None if math.isfinite(norm) else f"the gradients became {norm} (the loss is {losses[-1]:.4g})"

    def _write(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        step = trainer.global_step + 1
        name = f"nonfinite-{step}" + (f"-rank{trainer.global_rank}" if trainer.global_rank else "")
        file = self.run.path / f"{name}.pt"
        if file.exists() or len(list(self.run.path.glob("nonfinite-*.pt"))) >= MAX_FILES:
            return
        keys = [(pl_module.settings.seed, trainer.current_epoch, i, trainer.global_rank) for i, _ in self._batches]
        content = {
            "format": FORMAT,
            "vssm": pl_module.description,
            "reason": self._reason,
            "step": step,
            "epoch": trainer.current_epoch + 1,
            "losses": [float(loss) for loss in self._losses],
            "state_dict": pl_module.state_dict(),
            "batches": [_plain(batch) | generators(*key) for (_, batch), key in zip(self._batches, keys, strict=True)],
        }
        with replacing(file) as new:
            torch.save(content, new)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.in_a_row = state_dict["total"], state_dict["in_a_row"]


def generators(*key: int) -> dict[str, Any]:
    """The states of the generators that `seed_all(*key)` leaves, and the key, as plain types and tensors."""
    with generators_kept():
        seed_all(*key)
        version, numbers, gauss = random.getstate()
        kind, words, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (timm draws from it)
        return {
            "key": list(key),
            "random": [version, list(numbers), gauss],
            "numpy": [str(kind), torch.from_numpy(np.asarray(words, dtype=np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
        }


def restore_generators(stored: Mapping[str, Any], device: torch.device) -> None:
    """Puts the generators to the states that `generators` gave."""
    version, numbers, gauss = stored["random"]
    random.setstate((version, tuple(numbers), gauss))
    kind, words, *rest = stored["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(stored["torch"])
    if device.type == "cuda":
        torch.cuda.manual_seed(hash(tuple(stored["key"])) & 0xFFFF_FFFF)


def to_batch(stored: Mapping[str, Any]) -> Batch:
    """The batch of a file."""
    images = stored["images"]
    if isinstance(images, Mapping):
        images = PaddedImages(images["pixels"], *(tuple(map(tuple, images[name])) for name in ("sizes", "originals")))
    return Batch(images, stored["targets"])


def _plain(batch: Batch) -> dict[str, Any]:
    images = batch.images
    if isinstance(images, PaddedImages):
        images = {"pixels": images.pixels, "sizes": list(images.sizes), "originals": list(images.originals)}
    return {"images": images, "targets": _unshared(batch.targets)}


def _unshared(targets: Any) -> Any:
    """Plain containers, which a file may hold."""
    if isinstance(targets, Mapping):
        return {name: _unshared(value) for name, value in targets.items()}
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        return [_unshared(value) for value in targets]
    return targets


def _copied(value: Any) -> Any:
    """The same with tensors of its own: a learner may change its inputs in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Batch):
        return Batch(_copied(value.images), _copied(value.targets))
    if isinstance(value, PaddedImages):
        return dataclasses.replace(value, pixels=_copied(value.pixels))
    if isinstance(value, Mapping):
        return {name: _copied(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value
