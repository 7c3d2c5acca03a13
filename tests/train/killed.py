"""`vssm fit` in a process that kills itself with SIGKILL at a chosen moment. Run by tests/train/test_killed.py.

python -m tests.train.killed MOMENT:STEP,... ARGUMENT...   the first start takes the arguments of vssm fit --out DIR,
further ones `--resume DIR`, one per moment, and at last one to the end. Prints the step at which each start began.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from vssm.train import fit as fitting
from vssm_cli import fit as fit_command
from vssm_cli.command import main


class KillAt(Callback):
    def __init__(self, moment, step):
        self.moment, self.step = moment, step
        self.trainer = None

    def on_train_start(self, trainer, *_):
        self.trainer = trainer
        print("begins after step", trainer.global_step, flush=True)

    def now(self, moment):
        if moment == self.moment and self.trainer is not None and self.trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_after_backward(self, *_):
        self.now("step")

    def on_validation_batch_end(self, *_):
        self.now("validation")


class HalfWritten:
    """A file that kills the process once half of a checkpoint was written."""

    def __init__(self, file, kill, size):
        self.file, self.kill, self.size = file, kill, size

    def write(self, data):
        written = self.file.write(data)
        if self.file.tell() > self.size / 2:
            self.file.flush()
            self.kill.now("checkpoint")
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


def run_until(moment, step, arguments):
    kill = KillAt(moment, step)
    save, real = torch.save, fitting._callbacks
    fitting._callbacks = lambda *args: [kill, *real(*args)]
    fit_command._report = lambda *_: None
    torch.save = lambda content, file: save(content, HalfWritten(file, kill, 100_000))  # type: ignore[arg-type]
    sys.exit(main(["fit", *arguments]))


if __name__ == "__main__":
    arguments = sys.argv[2:]
    folder = arguments[arguments.index("--out") + 1]
    for when in sys.argv[1].split(","):
        moment, _, step = when.partition(":")
        child = os.fork()
        if child == 0:
            run_until(moment, int(step or 0), arguments)
        _, status = os.waitpid(child, 0)
        ended = f"killed by {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        left = sorted(path.name.split(".")[1] for path in Path(folder).rglob(".*.tmp"))
        print(f"{when}: {ended}, half-written: {left}", flush=True)
        arguments = ["--resume", folder]
