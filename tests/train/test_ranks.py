"""Two processes train what one does on the same global batches: losses, averages, metrics, uneven validations."""

import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Subset

from tests.train.interrupted import KillAt, Killed, rows
from tests.train.ranks import run_ranks
from tests.train.tiny import tiny_settings
from vssm.inference.checkpoint import read_checkpoint
from vssm.inference.evaluate import evaluate
from vssm.inference.predictor import Predictor
from vssm.inference.run_dir import RunDir
from vssm.train.fit import build, build_resumed, fit, start_run
from vssm.train.preemption import Preempted

BATCH = 16  # images of a step, of all processes


def settings_of(name, steps=4, **optim):
    """Without what draws for a process: mixing, stochastic depth. Norms keep their statistics, which are of a batch."""
    settings = tiny_settings()
    settings.model.name, settings.model.drop_path = name, 0.0
    if name.startswith("spatial"):
        settings.model.freeze = ["*.running_mean"]
    settings.trainer.max_epochs, settings.trainer.limit_train_batches = 2, steps // 2
    settings.trainer.limit_val_batches, settings.trainer.gradient_clip_val = None, 0.5
    for key, value in optim.items():
        setattr(settings.optim, key, value)
    return settings


def train_here(settings, val_images, resume, kill_at):
    """One process of a training that validates on so many images, and dies before optimizer step `kill_at`."""
    run = RunDir(settings.out) if resume else start_run(settings)
    experiment = build_resumed(settings, run) if resume else build(settings)
    splits = experiment.splits
    experiment.loaders.splits = replace(splits, val=Subset(splits.val, range(val_images)))
    with nullcontext() if kill_at is None else pytest.raises(Killed):
        fit(experiment, run, resume, [] if kill_at is None else [KillAt(kill_at)])
    run.close()


def train(settings, out, world, val_images=17, resume=False, kill_at=None, **trainer):
    for key, value in trainer.items():
        setattr(settings.trainer, key, value)
    settings.trainer.devices, settings.out = world, str(out)
    if not resume:
        settings.data.batch_size = BATCH // world
    run_ranks(train_here, world, settings, val_images, resume, kill_at)
    return RunDir(out)


def assert_same(first, second, tolerance=1e-5, validation=None):
    """Every figure of metrics.csv, and all tensors of last.ckpt: weights, averages, the state of the optimizer.
    `validation`: another tolerance for the figures of validations."""
    assert len(rows(first)) == len(rows(second)) > 2
    for one, other in zip(rows(first), rows(second), strict=True):
        assert {name for name, value in one.items() if value} == {name for name, value in other.items() if value}
        for name, value in one.items():
            if value:
                within = validation if validation is not None and name.startswith("val_") else tolerance
                assert float(value) == pytest.approx(float(other[name]), abs=within), (name, one["step"])
    files = [torch.load(run.last, weights_only=True) for run in (first, second)]
    entries = [*files[0]["state_dict"], *files[0]["optimizer_states"][0]["state"]]
    assert entries == [*files[1]["state_dict"], *files[1]["optimizer_states"][0]["state"]]
    for part in ("state_dict", "current_model_state"):
        for name, value in files[0][part].items():
            torch.testing.assert_close(value, files[1][part][name], rtol=0, atol=30 * tolerance, msg=f"{part} {name}")
    for one, other in zip(*(file["optimizer_states"][0]["state"].values() for file in files), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_ddp_is_one_process(tmp_path):
    """With repeated augmentation, accumulated gradients, clipping, averages, MESA and a teacher; one of the two
    validates one batch more than the other."""
    teacher = train(settings_of("vmamba_nano", 2), tmp_path / "teacher", 1)
    runs = []
    for world in (1, 2):
        settings = settings_of("vmamba_nano", 8, mesa_weight=1.0, mesa_start_epoch=1, validate_raw=True, lr_batch=32)
        settings.data.repeats, settings.optim.distill_teacher = 3, str(teacher.path)
        runs.append(train(settings, tmp_path / str(world), world, val_images=33, accumulate_grad_batches=2))
    assert_same(*runs)


@pytest.mark.parametrize("name", ["spatial_mamba_nano", pytest.param("vmamba_nano", marks=pytest.mark.full)])
def test_fsdp_is_one_process(tmp_path, name):
    """The averages and MESA's teacher are sharded too. One of the two has a validation batch less."""
    runs = []
    for world, strategy in ((1, "auto"), (2, "fsdp")):
        settings = settings_of(name, 4, mesa_weight=1.0, mesa_start_epoch=1, validate_raw=True, layer_decay=0.7)
        runs.append(train(settings, tmp_path / strategy, world, strategy=strategy))
    assert_same(*runs)
    stored = read_checkpoint(runs[1].last)
    assert stored.create_model()(torch.randn(1, 1, 32, 32)).shape == (1, 10), "a checkpoint like any other"


@pytest.mark.full
@pytest.mark.parametrize("name", ["vmamba_nano", "spatial_mamba_nano"])
def test_in_float64_fifty_steps_are_the_same(tmp_path, name):
    """What differs in float32 is rounding, which training amplifies: here it has 1e-16 to begin with."""
    runs = []
    for world, strategy in ((1, "auto"), (2, "ddp"), (2, "fsdp")):
        settings = settings_of(name, 50, mesa_weight=1.0, mesa_start_epoch=1)
        settings.trainer.precision = "64-true"
        runs.append(train(settings, tmp_path / strategy, world, strategy=strategy))
    weights = torch.load(runs[0].last, weights_only=True)["current_model_state"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float64}
    for run in runs[1:]:
        assert_same(runs[0], run, tolerance=1e-12, validation=1e-6)  # whose sums are in float32


@pytest.mark.parametrize(
    ("strategy", "sharded"),
    [("fsdp", True), *(pytest.param(name, False, marks=pytest.mark.full) for name in ("fsdp", "ddp"))],
)
def test_another_number_of_processes_goes_on(tmp_path, strategy, sharded):
    """One process, then two, then one, each dying within an epoch: the images and all else go on as without. A whole
    file, then perhaps shards, then a whole file again."""
    whole = train(settings_of("vmamba_nano", 6), tmp_path / "whole", 1)
    settings = settings_of("vmamba_nano", 6)
    settings.save_every_n_steps = 1
    settings.trainer.max_epochs = 2
    train(settings, tmp_path / "parts", 1, kill_at=1)
    settings.trainer.sharded_checkpoints = sharded
    last = train(settings, tmp_path / "parts", 2, resume=True, kill_at=5, strategy=strategy).last
    assert last.is_dir() == sharded
    assert read_checkpoint(last).settings.data.batch_size == BATCH // 2
    settings.trainer.sharded_checkpoints = False
    parts = train(settings, tmp_path / "parts", 1, resume=True, strategy="auto")
    assert_same(whole, parts)


class SignalOne(Callback):
    """SIGTERM to the second process in a step of the second epoch."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.global_rank, trainer.current_epoch, batch_idx) == (1, 1, 1):
            os.kill(os.getpid(), signal.SIGTERM)


def leave_here(settings, val_images=17):
    run, experiment = start_run(settings), build(settings)
    experiment.loaders.splits = replace(experiment.splits, val=Subset(experiment.splits.val, range(val_images)))
    words = ["a signal to another process", "SIGTERM"][int(os.environ["RANK"])]
    with pytest.raises(Preempted, match=f"stopped by {words}; step 5 is saved"):
        fit(experiment, run, callbacks=[SignalOne()])
    run.close()


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_signal_to_one_process_saves_all(tmp_path):
    """They resume as if nothing had happened."""
    whole = train(settings_of("vmamba_nano", 6), tmp_path / "whole", 2)
    settings = settings_of("vmamba_nano", 6)
    settings.trainer.devices, settings.out, settings.data.batch_size = 2, str(tmp_path / "parts"), BATCH // 2
    run_ranks(leave_here, 2, settings)
    assert torch.load(RunDir(settings.out).last, weights_only=True)["global_step"] == 5
    assert_same(whole, train(settings, tmp_path / "parts", 2, resume=True), tolerance=1e-7)


def test_devices_that_cannot_share_a_batch(tmp_path):
    settings = settings_of("vmamba_nano", 2)
    settings.trainer.max_epochs, settings.data.batch_size, settings.out = 1, 9, str(tmp_path / "run")
    run = start_run(settings)
    fit(build(settings), run)
    settings.trainer.devices, settings.trainer.max_epochs = 2, 2
    with pytest.raises(ValueError, match=r"batches of 9 images, which 2 devices cannot share evenly.*of 1, 3, 9"):
        build_resumed(settings, run)
    settings.trainer.devices, settings.data.batch_size = 1, 4
    with pytest.raises(ValueError, match="batches of 9 images on all devices together, now they have 4; change"):
        fit(build(settings, weights=False), run, resume=True)
    run.close()


def test_fewer_validation_images_than_devices():
    experiment = build(settings_of("vmamba_nano"))
    experiment.loaders.splits = replace(experiment.splits, val=Subset(experiment.splits.val, range(2)))
    trainer = SimpleNamespace(world_size=3, limit_train_batches=1.0, val_check_interval=1.0)
    with pytest.raises(ValueError, match="2 validation images are too few for 3 devices; take more images or fewer"):
        experiment.loaders.check(trainer)  # type: ignore[arg-type]


def test_validation_of_running_statistics(tmp_path):
    """Norms train, so the statistics of two processes are no longer those of one; but both validate with the same,
    which are saved: the checkpoint gives the same figures in one process. One of the two has a batch less."""
    settings = settings_of("spatial_mamba_nano", 4)
    settings.model.freeze = []
    run = train(settings, tmp_path / "run", 2, val_images=17)
    predictor = Predictor.of(read_checkpoint(run.last))
    assert predictor.data is not None
    splits = predictor.task.load_splits(predictor.data, predictor.preprocess)
    splits = replace(splits, val=Subset(splits.val, range(17)))
    found = evaluate(predictor.model, predictor.task, splits, batch_size=4).metrics()
    for name in ("val_loss", "val_top1", "val_top5"):
        assert float(rows(run)[-1][name]) == pytest.approx(found[name], abs=1e-6)
