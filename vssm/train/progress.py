"""The live line while training; without a terminal, one plain line per epoch."""

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vssm.train.module import TrainingModule
from vssm.train.unreadable import CountUnreadable


class LiveProgress(ProgressBar):
    """Steps of the whole run with loss, learning rate, images/s and the share of time spent waiting for images.

    Redrawn at most `per_second` times a second, so that small models do not pay for it. A line for each epoch stays
    on the screen: losses, accuracy, images/s.
    """

    def __init__(self, console: Console, title: str = "training", per_second: float = 4.0):
        super().__init__()
        self.console, self.title, self.interval = console, title, 1 / per_second
        self._bar: Progress | None = None
        self._task: Any = None
        self._drawn = self._batch_began = self._batch_ended = 0.0
        self._images, self._working, self._waiting = 0, 0.0, 0.0
        self._losses: list[Any] = []

    def disable(self) -> None:
        """Lightning silences the bars of all processes but the first with this."""
        self.console = Console(quiet=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch_ended = time.perf_counter()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console, refresh_per_second=4, transient=True)
            total = int(trainer.estimated_stepping_batches)
            self._task = self._bar.add_task(self.title, total=total, completed=trainer.global_step, status="")
            self._bar.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch_began = time.perf_counter()
        self._waiting += self._batch_began - self._batch_ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._batch_ended = time.perf_counter()
        self._working += self._batch_ended - self._batch_began
        self._images += len(batch[1]) * trainer.world_size
        self._losses.append(pl_module.latest_loss)
        if self._bar is not None and self._batch_ended - self._drawn > self.interval:
            self._drawn = self._batch_ended
            lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
            status = f"loss {float(self._losses[-1]):.3f}  lr {lr:.1e}  {self._speed()}"
            self._bar.update(self._task, completed=trainer.global_step, status=status)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._losses:  # resumed at the end of an epoch that was reported before
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epochs = trainer.max_epochs or 0
        parts = [
            f"epoch {trainer.current_epoch + 1:>{len(str(epochs))}}/{epochs}",
            f"train loss {math.fsum(map(float, self._losses)) / len(self._losses):.4f}",
        ]
        if "val_loss" in metrics:
            parts.append(f"val loss {metrics['val_loss']:.4f}")
        parts += [f"{k.replace('val_', '')} {metrics[k]:7.2%}" for k in ("val_top1", "val_top5") if k in metrics]
        unreadable = sum(c.counts["train"] for c in trainer.callbacks if isinstance(c, CountUnreadable))  # type: ignore[attr-defined]
        if unreadable:
            parts.append(f"{unreadable} unreadable")
        parts.append(self._speed())
        self.console.print("  ".join(parts), highlight=False, soft_wrap=True)
        self._images, self._working, self._waiting = 0, 0.0, 0.0
        self._losses.clear()
        self._batch_ended = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch_ended = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _speed(self) -> str:
        total = self._working + self._waiting
        return f"{self._images / total:.0f} images/s  waiting {self._waiting / total:.0%}" if total > 0 else ""
