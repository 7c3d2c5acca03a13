"""vssm fit that is interrupted, by Ctrl-C, a scheduler or kill -9."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.cli.test_fit import TINY
from tests.train.interrupted import rows
from vssm.inference.run_dir import RunDir
from vssm.train.callbacks import read_metrics
from vssm.train.module import TrainingModule
from vssm_cli.command import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


def fit_twenty_epochs(path):
    argv = ["fit", "--config", "digits", "--out", str(path), "--epochs", "20", "--save_every_n_steps", "1", *TINY]
    return [sys.executable, "-m", "vssm", *argv, "--trainer.log-every-n-steps=1"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("runs") / "whole")
    subprocess.run(fit_twenty_epochs(run.path), check=True, capture_output=True)
    return rows(run)


def test_ctrl_c(tmp_path, capsys, monkeypatch):
    run = RunDir(tmp_path / "run")
    step = TrainingModule.training_step

    def training_step(module, batch, batch_idx):
        if run.last.exists():
            os.kill(os.getpid(), signal.SIGINT)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    assert main(["fit", "--config", "digits", "--out", str(run.path), "--epochs", "3", *TINY]) == 130
    words = f"interrupted; the last checkpoint is intact, continue with: vssm fit --resume {run.path}"
    assert capsys.readouterr().err == f"vssm: error: {words}\n"
    assert torch.load(run.last, weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_of_a_scheduler_saves_and_asks_for_another_start(tmp_path, capsys, monkeypatch, how):
    """In the second step of the second epoch, which is finished and saved."""
    run = RunDir(tmp_path / "run")
    step = TrainingModule.training_step

    def training_step(module, batch, batch_idx):
        if (module.current_epoch, batch_idx) == (1, 1):
            os.kill(os.getpid(), how)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    assert main(["fit", "--config", "digits", "--out", str(run.path), "--epochs", "3", *TINY]) == 75
    words = f"stopped by {how.name}; step 5 is saved; the last checkpoint is intact, continue with: vssm fit --resume"
    assert f"vssm: error: {words} {run.path}\n" == capsys.readouterr().err
    assert torch.load(run.last, weights_only=True)["global_step"] == 5


def test_sigterm_before_training_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vssm.train.fit.build", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["fit", "--config", "digits", "--out", str(tmp_path / "run"), *TINY]) == 75
    assert capsys.readouterr().err == "vssm: error: stopped by SIGTERM\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.full
@pytest.mark.parametrize("everywhere", [False, True], ids=["to the first process", "to both, as a scheduler does"])
def test_a_signal_to_two_processes(tmp_path, everywhere):
    run = RunDir(tmp_path / "run")
    argv = [*fit_twenty_epochs(run.path), "--devices=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(argv, start_new_session=True, **pipes)
    while not (run.metrics.exists() and len(read_metrics(run.metrics)) >= 6):
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if everywhere else os.kill)(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    (line,) = [line for line in error.splitlines() if "error" in line]
    step = torch.load(run.last, weights_only=True)["global_step"]
    assert line.startswith(f"vssm: error: stopped by SIGTERM; step {step} is saved; the last checkpoint is intact")


@pytest.mark.full
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_process_resumes_exactly(uninterrupted, tmp_path, how):
    run = RunDir(tmp_path / "killed")
    process = subprocess.Popen(fit_twenty_epochs(run.path), stderr=subprocess.PIPE, text=True)
    while not (run.metrics.exists() and len(read_metrics(run.metrics)) >= 6):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -how, signal.SIGINT: 130, signal.SIGTERM: 75}[how]
    assert ("continue with: vssm fit --resume" in error) == (how != signal.SIGKILL)
    resume = [sys.executable, "-m", "vssm", "fit", "--resume", str(run.path)]
    subprocess.run(resume, check=True, capture_output=True)
    assert rows(run) == uninterrupted
