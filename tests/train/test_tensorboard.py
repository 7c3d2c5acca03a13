import importlib.util

import pytest

from tests.train.tiny import tiny_settings
from vssm.train.callbacks import read_metrics
from vssm.train.fit import build, fit, start_run


def settings(path):
    made = tiny_settings(log="csv+tensorboard", out=str(path / "run"))
    made.trainer.max_epochs = 1
    return made


def test_a_missing_tensorboard_is_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("vssm.train.tensorboard.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package tensorboard, .*: pip install tensorboard"):
        build(settings(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_the_same_numbers_as_in_the_csv(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = start_run(settings(tmp_path))
    fit(build(settings(tmp_path)), run)
    found = EventAccumulator(str(run.tensorboard))
    found.Reload()
    for column in ("train_loss", "val_top1", "lr"):
        logged = [(int(row["step"]), float(row[column])) for row in read_metrics(run.metrics) if row[column]]
        shown = [(event.step, event.value) for event in found.Scalars(column)]
        assert [step for step, _ in shown] == [step for step, _ in logged]
        assert [value for _, value in shown] == pytest.approx([value for _, value in logged], rel=1e-6)
