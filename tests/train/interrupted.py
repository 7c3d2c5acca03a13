"""A training from beginning to end, in one go or killed and resumed."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from vssm.train.callbacks import read_metrics
from vssm.train.fit import build, fit, start_run


class Killed(Exception):
    pass


class KillAt(Callback):
    """Ends the process, as far as the trainer can tell, before optimizer step `step` of the run."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


def train(path, settings, kill_at=None):
    """The run, the rows of metrics.csv but for the speed, and last.ckpt."""
    settings.out = str(path)
    run = start_run(settings)
    if kill_at is None:
        fit(build(settings), run)
    else:
        with pytest.raises(Killed):
            fit(build(settings), run, callbacks=[KillAt(kill_at)])
        fit(build(settings, weights=False), run, resume=True)
    run.close()
    return run, rows(run), torch.load(run.last, weights_only=True)


def rows(run):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in read_metrics(run.metrics)]


def same_tensors(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], value) for name, value in second.items())
