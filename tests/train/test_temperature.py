"""The temperature of dynamic convolutions: its course, in every module that has one, also over a resume."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.train.interrupted import KillAt, Killed, rows
from tests.train.tiny import tiny_settings
from vssm.nn import DynamicFusion
from vssm.train.fit import build, fit, start_run, temperature_of
from vssm.train.plan import plan
from vssm.train.temperature import AnnealTemperature
from vssm_cli.show import announce


class Cooled(nn.Module):
    """Any module with a temperature of its own."""

    def __init__(self, temperature):
        super().__init__()
        self.t = temperature

    def set_temperature(self, temperature):
        self.t = temperature

    def get_temperature(self):
        return self.t


class FakeTrainer:
    num_training_batches, accumulate_grad_batches, global_step = 12, 2, 0


def test_it_falls_linearly_to_1_and_stays():
    model = nn.Sequential(DynamicFusion(4), Cooled(7.0), nn.Linear(2, 2))
    callback = AnnealTemperature(model, epochs=2.5)
    assert set(callback.modules) == {"0", "1"}
    trainer = FakeTrainer()
    for step, share in ((0, 0.0), (3, 0.2), (6, 0.4), (15, 1.0), (400, 1.0)):  # 6 steps per epoch, 15 in all
        trainer.global_step = step
        callback.on_train_batch_start(trainer, None, None, 0)
        assert float(model[0].dynamic[0].temperature) == pytest.approx(30 - 29 * share)
        assert model[1].t == pytest.approx(7 - 6 * share)
        assert callback.present == pytest.approx(30 - 29 * share)


def settings_of(path, epochs=2.0):
    settings = tiny_settings(out=str(path), save_every_n_steps=1)
    settings.model.name = "spatial_mamba_nano"
    settings.model.args["state_fn"] = "dynamic"
    settings.optim.temperature_epochs = epochs
    return settings


def course(run):
    return [float(row["temperature"]) for row in rows(run) if row["train_loss"]]


def test_a_training_logs_it_and_a_resumed_one_goes_on(tmp_path):
    """Two of three epochs of four steps: 30, 30 - 29/8, ... 1, and then 1."""
    expected = [30 - 29 * min(step, 8) / 8 for step in range(12)]
    whole = start_run(settings_of(tmp_path / "whole"))
    fit(build(settings_of(tmp_path / "whole")), whole)
    assert course(whole) == pytest.approx(expected)
    last = torch.load(whole.last, weights_only=True)
    for entry in ("state_dict", "current_model_state"):
        (name,) = [n for n in last[entry] if n.endswith("stages.0.blocks.0.mixer.state_fn.dynamic.0.temperature")]
        assert last[entry][name] == 1, "in the averaged weights too"
    settings = settings_of(tmp_path / "run")
    run = start_run(settings)
    with pytest.raises(Killed):
        fit(build(settings), run, callbacks=[KillAt(5)])
    fit(build(settings, weights=False), run, resume=True)
    assert rows(run) == rows(whole)


def test_it_can_be_left_alone(tmp_path):
    settings = settings_of(tmp_path / "run", epochs=0.0)
    settings.trainer.max_epochs = 1
    run = start_run(settings)
    experiment = build(settings)
    assert temperature_of(experiment) is None
    fit(experiment, run)
    assert experiment.model.stages[0].blocks[0].mixer.state_fn.get_temperature() == 30
    assert "temperature" not in rows(run)[0]


def test_other_networks_have_none():
    experiment = build(tiny_settings())
    assert temperature_of(experiment) is None and plan(experiment).temperature is None


@pytest.mark.parametrize(("epochs", "words"), [(2.0, "30, falls to 1 over 2 epochs"), (0.0, "30, stays")])
def test_it_is_announced(tmp_path, epochs, words):
    console = Console(file=io.StringIO(), width=200)
    announce(console, build(settings_of(tmp_path / "run", epochs)))
    assert f"temperature of the dynamic convolutions {words}" in console.file.getvalue()
