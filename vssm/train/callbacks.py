"""What is written while training: metrics.csv and the checkpoints."""

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

from vssm._writing import naming, replacing, sync
from vssm.inference.run_dir import RunDir
from vssm.train.loggers import Board
from vssm.train.module import TrainingModule
from vssm.train.ranks import mean_over_ranks
from vssm.train.stopping import REMEDY, Diverged, Preempted, all_finite
from vssm.train.temperature import AnnealTemperature


class SaveCheckpoints(Checkpoint):
    """last.ckpt at the end of each epoch (and every `every_n_steps` inside it), best.ckpt by the highest `monitor`;
    `on_best` is called after each of the latter."""

    def __init__(self, run: RunDir, monitor: str, every_n_steps: int = 0, on_best: Callable[[], object] | None = None):
        self.on_best = on_best
        self.run, self.monitor, self.every_n_steps = run, monitor, every_n_steps
        self.best_score = -float("inf")
        self._validated = False
        self.saved_step = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = self.every_n_steps > 0 and step % self.every_n_steps == 0 and step != self.saved_step
        # The last batch of an epoch is left to the end of the epoch, which saves in any case.
        if due and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer, self.run.last)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A score of NaN, or none because this epoch was not validated, never counts as better.
        score = float(trainer.callback_metrics[self.monitor]) if self._validated else float("nan")
        self._validated = False
        improved = score > self.best_score
        if improved:
            self.best_score = score
        if improved:
            # Before last.ckpt, which knows the new best score: a process killed between the two repeats both.
            self._save(trainer, self.run.best)
            if self.on_best is not None and trainer.is_global_zero:
                self.on_best()
        self._save(trainer, self.run.last)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]

    def save_last(self, trainer: L.Trainer) -> None:
        """Raises Diverged when the weights are not finite, OSError when the file cannot be written."""
        self._save(trainer, self.run.last)

    def _save(self, trainer: L.Trainer, path: Path) -> None:
        # A gradient can overflow under a loss that is still finite: what would be saved is checked itself.
        finite = all_finite(trainer.lightning_module.state_dict().values())
        if not trainer.strategy.reduce_boolean_decision(finite):
            raise Diverged(
                f"the weights became NaN or infinite in epoch {trainer.current_epoch + 1}, by optimizer step "
                f"{trainer.global_step}: {REMEDY}"
            )
        if trainer.is_global_zero and self.run.metrics.exists():
            sync(self.run.metrics)  # the rows up to a checkpoint must not be lost when it is not
        trainer.save_checkpoint(path)
        self.saved_step = trainer.global_step


class WriteMetrics(Callback):
    """metrics.csv: a row with the training loss every `log_every_n_steps`, the mean over all processes, and one per
    validation with the `metrics` of the task; the same to `boards`. A network with dynamic convolutions adds their
    temperature.

    `step` counts optimizer steps done, `epoch` epochs begun (from 1). A resumed run removes the rows that the
    earlier process wrote after the checkpoint it continues from, so the file reads as if nothing had happened.
    """

    def __init__(
        self,
        run: RunDir,
        metrics: Sequence[str],
        boards: Sequence[Board] = (),
        temperature: AnnealTemperature | None = None,
    ):
        self.path, self.boards = run.metrics, tuple(boards)
        self.metrics = tuple(metrics)
        self.temperature = temperature
        own = () if temperature is None else ("temperature",)
        self.columns = ("epoch", "step", "lr", *own, "train_loss", *self.metrics, "skipped_steps", "images_per_second")
        self._images, self._seconds, self._began = 0, 0.0, 0.0
        self._lr = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and stage == "fit":
            for board in self.boards:
                board.open()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        found, kept = read_metrics(self.path) if self.path.exists() else [], []
        if trainer.global_step > 0:
            kept = [row for row in found if int(row["step"]) <= trainer.global_step]
        for board in self.boards:  # before rows are removed: a process killed in between tells it again
            board.start(trainer.global_step, found)
        with replacing(self.path) as new, new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.perf_counter()
        self._lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._seconds += time.perf_counter() - self._began
        self._images += len(batch.targets) * trainer.world_size
        step = trainer.global_step
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and step % trainer.log_every_n_steps == 0 and pl_module.latest_loss is not None:  # type: ignore[attr-defined]
            self._write(
                trainer,
                lr=self._lr,
                **({} if self.temperature is None else {"temperature": self.temperature.present}),
                train_loss=float(mean_over_ranks(trainer, pl_module.latest_loss)),
                skipped_steps=pl_module.skipped_steps,
                images_per_second=round(self._images / self._seconds, 1),
            )
            self._images, self._seconds = 0, 0.0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            found = trainer.callback_metrics
            self._write(trainer, **{name: float(found[name]) for name in self.metrics if name in found})

    def _write(self, trainer: L.Trainer, **values: float) -> None:
        if not trainer.is_global_zero:
            return
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **values}
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        for board in self.boards:
            board.write(row)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        leaves = isinstance(exception, KeyboardInterrupt | SystemExit | Preempted)
        for board in self.boards:
            board.close("killed" if leaves else "failed")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for board in self.boards:
            board.close("finished")


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; a last line that a killed process left unfinished is dropped."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row.values() and (row["step"] or "").isdigit()]
