"""The kernel refuses to write on: a limit on the size of files, and a file system that is full."""

import shutil
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.train.interrupted import rows, same_tensors, train
from tests.train.tiny import MODEL_ARGS, tiny_settings
from vssm.inference.run_dir import RunDir
from vssm.train.fit import build, fit, start_run
from vssm_cli.command import main

resource = pytest.importorskip("resource", reason="needs POSIX limits")


class Limit(Callback):
    """No file may grow beyond 20 kB from step `step` on; a checkpoint has more."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("step", "name"), [(5, "last.ckpt"), (3, "best.ckpt")])
def test_the_file_is_named_and_the_last_checkpoint_is_good(tmp_path, limits, step, name):
    """Step `step` + 1 cannot be saved; once there is room again, the run goes on as if nothing had happened."""
    settings = tiny_settings(save_every_n_steps=1, out=str(tmp_path / "run"))
    run, before = start_run(settings), resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match=rf"File too large: '.*/checkpoints/{name}'"):
        fit(build(settings), run, callbacks=[Limit(step)])
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.load(run.last, weights_only=True)["global_step"] == step
    assert not list(run.path.rglob(".*.tmp"))
    fit(build(settings, weights=False), run, resume=True)
    _, whole, last = train(tmp_path / "whole", tiny_settings())
    assert rows(run) == whole
    same_tensors(torch.load(run.last, weights_only=True)["state_dict"], last["state_dict"])


@pytest.mark.full
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux")
def test_a_full_file_system(tmp_path, capsys):
    """A small one in memory, for the command alone; what it held is copied out of it."""
    small, out = tmp_path / "small", tmp_path / "out"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {small}"
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*alone, mount], check=False, capture_output=True).returncode:
        pytest.skip("no file systems for a user here")
    argv = f"fit --config digits --model.args '{MODEL_ARGS}' --epochs 3 --keep_last 50 --save_every_n_steps 1"
    argv += " --accelerator cpu --trainer.limit_train_batches 20 --trainer.limit_val_batches 2"
    command = (
        f"{mount} && {sys.executable} -m vssm {argv} --out {small}/run; code=$?; cp -a {small}/run {out}; exit $code"
    )
    run = subprocess.run([*alone, command], check=False, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1, run.stderr
    (error,) = [line for line in run.stderr.splitlines() if "error" in line]
    words = f"vssm: error: {small}/run/checkpoints/last.ckpt: No space left on device; the last checkpoint is intact"
    assert words in error and "Traceback" not in run.stderr
    kept = [torch.load(file, weights_only=True)["global_step"] for file in RunDir(out).resumable]
    assert len(kept) > 1 and kept == list(range(kept[0], 0, -1))
    assert main(["fit", "--resume", str(out)]) == 0
    assert torch.load(RunDir(out).last, weights_only=True)["global_step"] == 60
