"""Signals of a scheduler, a worker that dies, a clock that jumps."""

import itertools
import os
import signal
import time

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.train.interrupted import rows, same_tensors, train
from tests.train.tiny import tiny_settings
from vssm.train.fit import WorkerDied, build, fit, start_run
from vssm.train.preemption import Preempted

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


class Send(Callback):
    """SIGTERM before a batch of training, of validation, or at the end of an epoch."""

    def __init__(self, hook, epoch, batch=0):
        self.hook, self.epoch, self.batch = hook, epoch, batch

    def _at(self, hook, trainer, batch=0):
        if (hook, trainer.current_epoch, batch) == (self.hook, self.epoch, self.batch):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._at("train", trainer, batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self._at("validation", trainer, batch_idx)

    def on_validation_end(self, trainer, module):
        self._at("epoch", trainer)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "whole", tiny_settings())


@pytest.mark.parametrize(
    ("when", "step"),
    [
        (("train", 1, 2), 7),
        (("train", 1, 3), 8),
        (("validation", 0, 1), 4),
        (("validation", 1, 2), 8),
        (("epoch", 1), 8),
    ],
    ids=["in a step", "in the last step of an epoch", "in a validation", "in its last batch", "after it"],
)
def test_saved_where_it_is_and_resumed_exactly(whole, tmp_path, when, step):
    """Also in a validation, which is then repeated; no step is."""
    settings = tiny_settings(out=str(tmp_path / "run"))
    run = start_run(settings)
    with pytest.raises(Preempted, match=f"stopped by SIGTERM; step {step} is saved"):
        fit(build(settings), run, callbacks=[Send(*when)])
    assert torch.load(run.last, weights_only=True)["global_step"] == step
    fit(build(settings, weights=False), run, resume=True)
    assert rows(run) == whole[1]
    found = torch.load(run.last, weights_only=True)
    for entry in ("state_dict", "current_model_state"):
        same_tensors(found[entry], whole[2][entry])
    best = [torch.load(one.best, weights_only=True)["global_step"] for one in (run, whole[0])]
    assert best[0] == best[1]


def test_a_step_of_several_batches_is_finished(tmp_path):
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.trainer.accumulate_grad_batches = 2
    with pytest.raises(Preempted, match="step 1 is saved"):
        fit(build(settings), start_run(settings), callbacks=[Send("train", 0, 0)])


def test_in_the_last_epoch_the_training_ends_as_usual(whole, tmp_path):
    settings = tiny_settings(out=str(tmp_path / "run"))
    run = start_run(settings)
    fit(build(settings), run, callbacks=[Send("epoch", 2)])
    same_tensors(torch.load(run.last, weights_only=True)["state_dict"], whole[2]["state_dict"])


def test_nothing_depends_on_the_clock(whole, tmp_path, monkeypatch):
    """One that jumps by years, forwards and backwards."""
    jumps = itertools.cycle([0.0, 4e9, 1e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    _, found, last = train(tmp_path / "run", tiny_settings(save_every_n_steps=1), kill_at=7)
    assert found == whole[1]
    same_tensors(last["state_dict"], whole[2]["state_dict"])


class Dies(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None and index % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[index]


def test_a_worker_that_dies_is_named(tmp_path):
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.data.workers = 1
    experiment = build(settings)
    experiment.loaders.splits.__dict__["train"] = Dies(experiment.splits.train)
    with pytest.raises(WorkerDied, match=r"a process that loads images died .*pid.*fewer --workers"):
        fit(experiment, start_run(settings))
