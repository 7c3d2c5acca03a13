"""`vssm fit` started by torchrun and by SLURM's srun, here two processes on the CPU, and the scripts of examples/."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vssm.__main__ import main
from vssm._yaml import read_yaml
from vssm.train.callbacks import read_metrics
from vssm_cli.settings import recipes

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])
FIT = ["-m", "vssm", "fit", "--config", "digits", "--model.args", "{dims: [8, 16], depths: [1, 1]}", "--epochs", "1"]
FIT += ["--accelerator", "cpu", "--batch-size", "8", "--trainer.limit-train-batches", "3"]
FIT += ["--trainer.limit-val-batches", "2", "--trainer.log-every-n-steps", "1"]


def check(folder, run, outputs):
    """One run directory, written and reported by one process."""
    assert [path.name for path in (folder / "runs").iterdir()] == [run]
    assert (folder / "runs" / run / "report.html").exists()
    assert read_yaml(folder / "runs" / run / "config.yaml")["data"]["batch_size"] == 8
    rows = read_metrics(folder / "runs" / run / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "3"] and rows[-1]["val_top1"]
    assert "".join(outputs).count("report ") == "".join(outputs).count("epoch 1/1") == 1


@pytest.mark.full
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun(tmp_path, strategy, monkeypatch, capsys):
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    argv += ["--rdzv-endpoint", "localhost:0", "--rdzv-id", "mine", *FIT]
    argv += ["--devices", "2", "--trainer.strategy", strategy]
    run = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    check(tmp_path, "vmamba_nano-digits-mine", [run.stdout])
    monkeypatch.chdir(tmp_path)
    assert (
        main(["fit", "--resume", "runs/vmamba_nano-digits-mine", "--devices", "1", "--trainer.strategy", "auto"]) == 0
    )
    assert "16 images" in (shown := capsys.readouterr().out) and "was already complete" in shown


@pytest.mark.full
def test_slurm(tmp_path):
    """What srun puts into the environment of each task is put there by hand."""
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1"}
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        argv = [sys.executable, *FIT, "--devices", "2"]
        processes.append(subprocess.Popen(argv, cwd=tmp_path, env=environment, **streams))
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    check(tmp_path, "vmamba_nano-digits-1234", [out for out, _ in outputs])
    assert outputs[1] == ("", ""), "the second process is silent"


@pytest.mark.parametrize("option", ["--lr=1", "--trainer.max_epochs=2", "--trainer.precision=bf16-mixed"])
def test_a_resumed_run_changes_devices_only(option, capsys):
    assert main(["fit", "--resume", "run", "--devices", "2", "--trainer.strategy=ddp", option]) == 2
    words = "no other option except --devices, --accelerator, --trainer.num_nodes, --trainer.strategy and "
    words += "--trainer.sharded_checkpoints, not"
    assert f"{words} {option.partition('=')[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts(script):
    assert len(SCRIPTS) == 2
    (recipe,) = re.findall(r"--config (\S+)", script.read_text())
    assert recipe in recipes()
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--shell=bash", script], check=True)
