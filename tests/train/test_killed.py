"""kill -9 of `vssm fit` in a step, in a validation and in the writing of a checkpoint; resumed by --resume alone."""

import os
import subprocess
import sys

import pytest
import torch

from tests.train.interrupted import rows, same_tensors
from vssm.inference.run_dir import RunDir

FIT = ["--config=digits", "--epochs=2", "--save-every-n-steps=1", "--trainer.log-every-n-steps=1", "--accelerator=cpu"]
FIT += ["--model.args={dims: [8, 16], depths: [1, 1]}", "--trainer.limit-train-batches=4", "--batch-size=16"]
FIT += ["--trainer.limit-val-batches=2", "--model.drop-path=0.3"]


def _train(moments, out):
    command = [sys.executable, "-m", "tests.train.killed", moments, *FIT, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_killed_at_any_moment_the_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """Both in processes of their own: what other tests left in this one, threads for example, changes the last bits."""
    monkeypatch.delenv("VSSM_RUN_DIR", raising=False)
    moments = "step:0,validation:4,checkpoint:6,end"
    _train("end", tmp_path / "whole")
    found = _train(moments, tmp_path / "killed")
    told = [line for line in found.stdout.splitlines() if line.startswith(("begins", *moments.split(",")))]
    assert told == [
        "begins after step 0",
        "step:0: killed by 9, half-written: []",
        "begins after step 0",  # there was no checkpoint yet
        "validation:4: killed by 9, half-written: []",
        "begins after step 3",  # the last step of an epoch is saved after its validation
        "checkpoint:6: killed by 9, half-written: ['last']",
        "begins after step 5",
        "end: exit 0, half-written: []",
    ]
    whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    assert rows(killed) == rows(whole)
    for name in ("last", "best", "step-7"):
        one, other = (torch.load(run.checkpoints / f"{name}.ckpt", weights_only=True) for run in (whole, killed))
        assert one["global_step"] == other["global_step"]
        same_tensors(other["state_dict"], one["state_dict"])
