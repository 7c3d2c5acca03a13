"""The live line while training; without a terminal, one plain line per epoch."""

import operator
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from torch import Tensor

from vssm.train.module import TrainingModule
from vssm.train.ranks import mean_over_ranks
from vssm.train.stopping import StopEarly
from vssm.train.unreadable import CountUnreadable

SMOOTHED = 50  # batches that loss, running figures and time are averaged over
WIDE = 115  # columns of a terminal that has room for a bar


class LiveProgress(ProgressBar):
    """Steps of the whole run with loss and the task's running figures (top-1), learning rate, images/s, the share of
    time spent waiting for images, and the time left. The most needed stands first, for narrow terminals.

    Redrawn at most `per_second` times a second, so that small models do not pay for it. A line for each epoch stays
    on the screen: losses, accuracy, images/s.
    """

    def __init__(
        self, console: Console, title: str = "training", per_second: float = 4.0, metrics: Sequence[str] | None = None
    ):
        super().__init__()
        self.metrics = metrics
        self.console, self.title, self.interval = console, title, 1 / per_second
        self._bar: Progress | None = None
        self._task: Any = None
        self._drawn = self._batch_began = self._batch_ended = 0.0
        self._images, self._working, self._waiting = 0, 0.0, 0.0
        self._losses: list[Tensor] = []
        self._running: dict[str, deque[tuple[Tensor, int]]] = {}
        self._clock = Clock()

    def disable(self) -> None:
        """Lightning silences the bars of all processes but the first with this."""
        self.console = Console(quiet=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch_ended = time.perf_counter()
        if self.console.is_terminal:
            columns: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn("{task.fields[status]}")]
            if self.console.width >= WIDE:
                columns = [TextColumn("{task.description}"), BarColumn(bar_width=20), *columns]
            # Drawn by this thread alone: one that refreshes by itself would take turns with the training.
            self._bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
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
        assert isinstance(pl_module, TrainingModule) and pl_module.latest_loss is not None
        ended = time.perf_counter()
        self._clock.add(ended - self._batch_ended)
        self._working += ended - self._batch_began
        self._batch_ended = ended
        self._images += len(batch.targets) * trainer.world_size
        self._losses.append(pl_module.latest_loss)
        if self._bar is None:
            return
        for name, mean in pl_module.running(batch).items():
            self._running.setdefault(name, deque(maxlen=SMOOTHED)).append((mean, len(batch.targets)))
        if ended - self._drawn > self.interval:
            lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
            parts = [f"loss {float(_mean(self._losses[-SMOOTHED:])):.3f}"]
            for name, latest in self._running.items():
                means = torch.stack([mean for mean, _ in latest]).tolist()
                counts = [count for _, count in latest]
                parts.append(f"{name} {sum(map(operator.mul, means, counts)) / sum(counts):.1%}")
            parts += [self._clock.left(trainer), self._speed(), f"lr {lr:.1e}"]
            self._draw(trainer, "  ".join(parts))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._losses:  # resumed at the end of an epoch that was reported before
            return
        train_loss = mean_over_ranks(trainer, _mean(self._losses))
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epochs = trainer.max_epochs or 0
        parts = [
            f"epoch {trainer.current_epoch + 1:>{len(str(epochs))}}/{epochs}",
            f"train loss {float(train_loss):.4f}",
        ]
        if "val_loss" in metrics:
            parts.append(f"val loss {metrics['val_loss']:.4f}")
        shares = [name for name in metrics if name.startswith("val_") and name not in ("val_loss", "val_images")]
        shares = [name for name in shares if self.metrics is None or name in self.metrics]
        parts += [f"{name.removeprefix('val_')} {metrics[name]:7.2%}" for name in shares]
        unreadable = sum(c.counts["train"] for c in trainer.callbacks if isinstance(c, CountUnreadable))  # type: ignore[attr-defined]
        if unreadable:
            parts.append(f"{unreadable} unreadable")
        assert isinstance(pl_module, TrainingModule)
        if pl_module.skipped_steps:
            parts.append(f"{pl_module.skipped_steps} steps skipped so far")
        parts.append(self._speed())
        self.console.print("  ".join(parts), highlight=False, soft_wrap=True)
        self._images, self._working, self._waiting = 0, 0.0, 0.0
        self._losses.clear()
        self._batch_ended = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock.validation_began = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is not None and time.perf_counter() - self._drawn > self.interval:
            batches = sum(trainer.num_val_batches)
            self._draw(trainer, f"validating, batch {batch_idx + 1} of {batches}  {self._clock.left(trainer)}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch_ended = time.perf_counter()
        self._clock.validation = self._batch_ended - self._clock.validation_began

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()
        early = trainer.early_stopping_callback
        if isinstance(early, StopEarly) and early.message is not None:
            self.console.print(early.message, highlight=False, soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _draw(self, trainer: L.Trainer, status: str) -> None:
        assert self._bar is not None
        self._drawn = time.perf_counter()
        self._bar.update(self._task, completed=trainer.global_step, status=status)
        self._bar.refresh()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _speed(self) -> str:
        total = self._working + self._waiting
        return f"{self._images / total:.0f} img/s  waiting {self._waiting / total:.0%}" if total > 0 else ""


def _mean(losses: list[Tensor]) -> Tensor:
    """In double precision, without those of skipped steps."""
    found = torch.stack(losses).double()
    return found[torch.isfinite(found)].mean()


class Clock:
    """The time left, from the batches and validations of this process. The first batch only warms up."""

    def __init__(self):
        self._batches = 0
        self._mean = 0.0
        self.validation = self.validation_began = 0.0

    def add(self, seconds: float) -> None:
        """One batch took this long, waiting included."""
        self._batches += 1
        if self._batches > 1:
            # The mean of all at first, then of about the last SMOOTHED.
            self._mean += (seconds - self._mean) / min(self._batches - 1, SMOOTHED)

    def left(self, trainer: L.Trainer) -> str:
        """h:mm:ss left; unknown before three batches."""
        if self._batches < 4:
            return "-:--:-- left"
        steps = int(trainer.estimated_stepping_batches) - trainer.global_step
        every = trainer.check_val_every_n_epoch or 1
        validations = ((trainer.max_epochs or 0) - trainer.current_epoch) // every
        seconds = steps * trainer.accumulate_grad_batches * self._mean + validations * self.validation
        return f"{timedelta(seconds=round(seconds))} left"
