"""What `vssm fit` costs beyond the training step itself, on the bundled digits.

Both run in one process and take turns every few batches: a bare PyTorch loop (forward, loss, backward, clipping,
AdamW, schedule and, where asked, a running average of the weights) over batches that lie ready, and `fit` with its data
loader, callbacks, metrics and live line. Printed are the medians over blocks of the time per step, and that of the
ratio of neighbouring blocks. With --cpu-time other programs on the machine count less.

    OMP_NUM_THREADS=1 python benchmarks/train_loop.py [--models NAME ...] [--blocks N] [--cpu-time]
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from vssm.settings import DataSettings, ModelSettings, OptimSettings, Settings, TrainerSettings
from vssm.tasks.classification import create_classifier
from vssm.train.fit import build, fit, start_run
from vssm.train.optim import create_optimizer, create_schedule
from vssm.train.progress import LiveProgress

BLOCK = 10  # batches before the two loops alternate
Clock = Callable[[], float]


class Bare:
    """The step and nothing else."""

    def __init__(self, settings: Settings, batches, clock: Clock):
        self.model = create_classifier(settings.model.name, 10, in_chans=1).train()
        self.optimizer = create_optimizer(self.model, settings.optim, fused=True)
        self.schedule = create_schedule(self.optimizer, settings.optim, 100_000, 44)
        self.parameters = list(self.model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.settings, self.batches, self.clock = settings, batches, clock

    def block(self) -> float:
        optim = self.settings.optim
        began = self.clock()
        for images, labels in self.batches:
            loss = F.cross_entropy(self.model(images), labels, label_smoothing=optim.label_smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.trainer.gradient_clip_val)
            self.optimizer.step()
            self.schedule.step()
            if optim.ema_decay > 0:
                torch._foreach_lerp_(self.average, self.parameters, 1 - optim.ema_decay)
        return (self.clock() - began) / len(self.batches)


class TakeTurns(Callback):
    """Times alternating blocks of `fit` and of the bare loop. The first batches of an epoch are left out."""

    def __init__(self, bare: Bare, blocks: int):
        self.bare, self.blocks = bare, blocks
        self.fit_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self._began: float | None = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx % BLOCK != 2:
            return
        now = self.bare.clock()
        if self._began is not None and batch_idx > 2:
            self.fit_seconds.append((now - self._began) / BLOCK)
            self.bare_seconds.append(self.bare.block())
            if len(self.fit_seconds) >= self.blocks:
                trainer.should_stop = True
        self._began = self.bare.clock()

    def on_train_epoch_end(self, *_) -> None:
        self._began = None


def measure(name: str, ema_decay: float, blocks: int, clock: Clock) -> tuple[float, float, float]:
    """Seconds per step of both, bare and fit, and the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            ModelSettings(name),
            DataSettings("digits", batch_size=32, augment=False),
            OptimSettings(ema_decay=ema_decay),
            TrainerSettings(max_epochs=1000, accelerator="cpu", limit_val_batches=1),
            out=str(Path(folder) / "run"),
        )
        experiment = build(settings)
        images = torch.stack([experiment.splits.train[i][0] for i in range(32 * BLOCK)])  # type: ignore[index]
        labels = torch.tensor([experiment.splits.train[i][1] for i in range(32 * BLOCK)])  # type: ignore[index]
        bare = Bare(settings, list(zip(images.split(32), labels.split(32), strict=True)), clock)
        bare.block()
        turns = TakeTurns(bare, blocks)
        console = Console(file=io.StringIO(), force_terminal=True, width=120)
        fit(experiment, start_run(settings), callbacks=[turns, LiveProgress(console)])
    pairs = list(zip(turns.bare_seconds, turns.fit_seconds, strict=True))
    ratio = statistics.median(whole / bare for bare, whole in pairs)
    return statistics.median(turns.bare_seconds), statistics.median(turns.fit_seconds), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vmamba_nano", "spatial_mamba_nano"], metavar="NAME")
    parser.add_argument("--blocks", type=int, default=40, help=f"blocks of {BLOCK} steps to time of each")
    parser.add_argument("--cpu-time", action="store_true", help="measure processor time instead of wall time")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    print("| model, batch of 32 | bare step, ms | `vssm fit`, ms | overhead |\n|---|---|---|---|")
    for name in args.models:
        for decay in (0.0, 0.98):
            bare, whole, ratio = measure(name, decay, args.blocks, clock)
            label = f"`{name}`" + (", averaged weights" if decay else "")
            print(f"| {label} | {1e3 * bare:.1f} | {1e3 * whole:.1f} | {ratio - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
