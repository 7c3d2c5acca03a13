"""What is shown while a training goes on: the live line, the line of each epoch, the time left."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.train.tiny import tiny_settings
from vssm.train.callbacks import read_metrics
from vssm.train.fit import build, fit, start_run
from vssm.train.progress import Clock, LiveProgress


def test_time_left():
    trainer = SimpleNamespace(
        estimated_stepping_batches=100,
        global_step=10,
        check_val_every_n_epoch=2,
        max_epochs=10,
        current_epoch=1,
        accumulate_grad_batches=3,
    )
    clock = Clock()
    for seconds in (60.0, 2.0, 2.0):
        clock.add(seconds)
    assert clock.left(trainer) == "-:--:-- left"
    clock.add(2.0)
    assert clock.left(trainer) == "0:09:00 left"  # 90 steps of 3 batches; the first batch warmed up
    clock.validation = 15.0
    assert clock.left(trainer) == "0:10:00 left"  # 4 validations
    for _ in range(500):
        clock.add(1.0)
    assert clock.left(trainer) == "0:05:30 left"


@pytest.mark.parametrize(("width", "mixup"), [(140, 0.0), (80, 0.0), (80, 0.5)])
def test_live_line(tmp_path, width, mixup):
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.trainer.max_epochs, settings.data.mixup = 1, mixup
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    fit(build(settings), start_run(settings), callbacks=[LiveProgress(console, per_second=1e9)])
    text = console.file.getvalue()
    assert "4/4 loss 2." in text
    assert ("top-1" in text.split("epoch 1/1")[0]) == (mixup == 0)
    assert all(word in text for word in ("lr 3.0e-03", "img/s", "waiting", "left", "validating, batch 3 of 3"))
    assert ("━" in text) == (width == 140)
    assert "epoch 1/1  train loss 2." in text


def test_without_a_terminal_there_is_one_line_per_epoch(tmp_path):
    """Its figures are those of metrics.csv."""
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.trainer.max_epochs = 2
    console = Console(file=io.StringIO(), width=200)
    run = start_run(settings)
    fit(build(settings), run, callbacks=[LiveProgress(console)])
    lines = console.file.getvalue().splitlines()
    rows = read_metrics(run.metrics)
    assert len(lines) == 2
    for epoch, line in enumerate(lines, start=1):
        of_epoch = [row for row in rows if row["epoch"] == str(epoch)]
        train = [float(row["train_loss"]) for row in of_epoch if row["train_loss"]]
        (validated,) = [row for row in of_epoch if row["val_loss"]]
        assert line.startswith(f"epoch {epoch}/2  train loss {sum(train) / len(train):.4f}")
        assert f"val loss {float(validated['val_loss']):.4f}" in line
        assert f"top1 {float(validated['val_top1']):7.2%}  top5 {float(validated['val_top5']):7.2%}" in line
        assert "img/s  waiting" in line and "unreadable" not in line


def test_an_early_end_is_explained(tmp_path):
    settings = tiny_settings(out=str(tmp_path / "run"), early_stopping=1)
    settings.trainer.max_epochs, settings.optim.lr, settings.optim.min_lr = 9, 1e-12, 0.0
    settings.optim.warmup_lr = 0.0
    console = Console(file=io.StringIO(), width=200)
    fit(build(settings), start_run(settings), callbacks=[LiveProgress(console)])
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3, "nothing is learnt: the second epoch is the last"
    assert lines[-1].startswith("stopped early: no better top-1 than ") and lines[-1].endswith(" in 1 validations")


def test_further_processes_are_silent(tmp_path):
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.trainer.max_epochs = 1
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    bar = LiveProgress(console)
    bar.disable()
    fit(build(settings), start_run(settings), callbacks=[bar])
    assert console.file.getvalue() == ""
