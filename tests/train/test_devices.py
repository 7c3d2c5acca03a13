"""A training on two devices, here processes on the CPU, from the command to the report."""

import subprocess
import sys

import pytest

from vssm.train.callbacks import read_metrics


@pytest.mark.full
def test_two_processes(tmp_path):
    """With everything that keeps a second network; each process takes half of a step's images, the report is written by
    the first alone."""
    argv = [sys.executable, "-m", "vssm", "fit", "--config", "digits", "--out", str(tmp_path / "run")]
    argv += ["--model.args", "{dims: [8, 16], depths: [1, 1]}", "--epochs", "2", "--accelerator", "cpu"]
    argv += ["--devices", "2", "--trainer.limit-train-batches", "3", "--trainer.limit-val-batches", "2"]
    argv += ["--optim.mesa-weight", "1", "--optim.mesa-start-epoch", "1", "--optim.validate-raw", "--data.repeats", "3"]
    argv += ["--optim.lr-batch", "128", "--trainer.log-every-n-steps", "1"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "here 0.0015 for 64" in run.stdout and run.stdout.count("report ") == 1
    assert (tmp_path / "run" / "report.html").exists()
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    losses = [float(row["train_loss"]) for row in rows if row["train_loss"]]
    assert len(losses) == 6 and min(losses[3:]) > max(losses[:3]) + 1, "MESA adds its cross entropy in the second epoch"
    assert all(row["val_top1_raw"] for row in rows if row["val_top1"])
