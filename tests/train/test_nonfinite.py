"""Steps that are not finite: skipped, counted, kept, and computed again."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.train.interrupted import rows, same_tensors, train
from tests.train.tiny import tiny_settings
from vssm.inference.run_dir import RunDir
from vssm.tasks.classification.learner import Classification
from vssm.train.fit import build, fit, start_run
from vssm.train.module import TrainingModule
from vssm.train.nonfinite import SkipNonFinite
from vssm.train.replay import replay
from vssm.train.stopping import Diverged
from vssm_cli.command import main


def spoil(monkeypatch, *batches, value=float("nan")):
    """One pixel of these training batches (epoch, index) becomes `value`, in this process and in resumed ones."""
    step = TrainingModule.training_step

    def training_step(module, batch, batch_idx):
        if (module.current_epoch, batch_idx) in batches:
            batch.images[3, 0, 5, 5] = value
        return step(module, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)


class Record(Callback):
    """Weights, averages and optimizer steps after each batch."""

    def __init__(self):
        self.weights, self.averages, self.steps = [], [], []

    def on_train_batch_end(self, trainer, module, *_):
        (averages,) = [c for c in trainer.callbacks if hasattr(c, "decay")] or [None]
        self.weights.append([p.detach().clone() for p in module.parameters()])
        if averages is not None:
            self.averages.append([p.detach().clone() for p in averages.module.parameters()])
        states = trainer.optimizers[0].state.values()
        self.steps.append({int(state["step"]) for state in states})


def equal(one, other):
    return all(map(torch.equal, one, other))


def test_a_step_is_left_out_and_counted(tmp_path, monkeypatch):
    """Batch 3 of epoch 2 is step 7: weights, averages and moments stay; the next steps train. A resume counts on."""
    spoil(monkeypatch, (1, 2))
    settings, seen = tiny_settings(save_every_n_steps=1, out=str(tmp_path / "run")), Record()
    run = start_run(settings)
    fit(build(settings), run, callbacks=[seen])
    for values in (seen.weights, seen.averages):
        assert equal(values[6], values[5]) and not equal(values[7], values[6])
    assert seen.steps == [{step} for step in (1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11)]
    found = [row for row in rows(run) if row["train_loss"]]
    assert [row["skipped_steps"] for row in found] == ["0"] * 6 + ["1"] * 6
    assert found[6]["train_loss"] == "nan"
    _, resumed_rows, resumed = train(tmp_path / "resumed", tiny_settings(save_every_n_steps=1), kill_at=9)
    assert str(resumed_rows) == str(rows(run))  # nan is not equal to itself
    same_tensors(resumed["state_dict"], torch.load(run.last, weights_only=True)["state_dict"])


def test_the_first_step_that_is_not_skipped_starts_the_averages(tmp_path, monkeypatch):
    spoil(monkeypatch, (0, 0))
    settings, seen = tiny_settings(out=str(tmp_path / "run")), Record()
    settings.trainer.max_epochs = 1
    fit(build(settings), start_run(settings), callbacks=[seen])
    assert seen.steps == [set(), {1}, {2}, {3}]
    assert equal(seen.averages[1], seen.weights[1]) and not equal(seen.averages[2], seen.weights[2])


@pytest.mark.parametrize("half", [0, 1])
def test_with_accumulation_the_whole_step_is_left_out(tmp_path, monkeypatch, half):
    """Whichever of the two batches of step 2 it is; norms keep their statistics too."""
    spoil(monkeypatch, (0, 2 + half))
    settings, seen = tiny_settings(out=str(tmp_path / "run")), Record()
    settings.model.name, settings.model.args = "test_resnet", {}
    settings.trainer.max_epochs, settings.trainer.accumulate_grad_batches = 2, 2
    run = start_run(settings)
    experiment = build(settings)
    fit(experiment, run, callbacks=[seen])
    assert seen.steps == [set(), {1}, {1}, {1}, {1}, {2}, {2}, {3}]
    assert equal(seen.weights[3], seen.weights[1]) and equal(seen.averages[3], seen.averages[1])
    assert all(torch.isfinite(buffer).all() for buffer in experiment.model.buffers())
    (counter,) = {int(b) for name, b in experiment.model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counter == 6
    again = replay(run.path / "nonfinite-2.pt")
    assert again.reproduced and len(again.losses) == 2
    assert again.first is not None and again.first.startswith(f"batch {half + 1} of 2: the images themselves, 1 of")


def test_too_many_in_a_row_end_the_training(tmp_path, monkeypatch, capsys):
    """Two are allowed; the one between two bad ones starts the count again. Three files are written at most."""
    spoil(monkeypatch, (0, 0), (0, 1), (0, 3), (1, 1), (1, 3), (2, 0), (2, 1))
    settings = tiny_settings(save_every_n_steps=1, out=str(tmp_path / "run"))
    settings.optim.max_skipped_steps = 2
    run = start_run(settings)
    words = r"nan in epoch 3, batch 2 of 4 \(optimizer step 10\), and so in 3 steps in a row; `vssm .*-6\.pt"
    with pytest.raises(Diverged, match=words):
        fit(build(settings), run)
    assert sorted(path.name for path in run.path.glob("*.pt")) == [f"nonfinite-{step}.pt" for step in (1, 4, 6)]
    assert torch.load(run.last, weights_only=True)["global_step"] == 9


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_epoch_without_a_step_ends_the_training(tmp_path, monkeypatch, accumulated):
    """Fewer steps than max_skipped_steps: the second of three epochs, after which nothing is saved."""
    spoil(monkeypatch, (1, 0), (1, 1), (1, 2), (1, 3))
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.trainer.accumulate_grad_batches = accumulated
    run, steps = start_run(settings), 4 // accumulated
    words = (
        rf"every optimizer step of epoch 2 \({steps}\) was skipped, .* the training loss became nan, and so in {steps}"
    )
    with pytest.raises(Diverged, match=words):
        fit(build(settings), run)
    assert torch.load(run.last, weights_only=True)["global_step"] == steps
    assert [row["epoch"] for row in rows(run) if row["val_top1"]] == ["1", "2"]


def test_all_but_one_step_of_an_epoch_may_be_skipped(tmp_path, monkeypatch):
    spoil(monkeypatch, (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2))
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.trainer.max_epochs = 2
    run = start_run(settings)
    fit(build(settings), run)
    assert rows(run)[-2]["skipped_steps"] == "6"


def test_a_training_without_a_finite_loss_is_an_error(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, *((0, batch) for batch in range(3)))
    out = tmp_path / "run"
    arguments = ["--config=digits", "--epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1"]
    model = ["--model=vmamba_nano", "--model.args={dims: [8, 16], depths: [1, 1]}", "--accelerator=cpu"]
    assert main(["fit", *arguments, *model, "--out", str(out)]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "vssm: error: every optimizer step of epoch 1 (3) was skipped" in error and "Traceback" not in error
    assert not RunDir(out).last.exists() and not RunDir(out).report.exists()


def test_replay_names_the_module(tmp_path, monkeypatch, capsys):
    """An infinite weight deep in the network, under stochastic depth and mixing."""

    class Break(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 2:
                with torch.no_grad():
                    module.task.model.head.fc.weight[1, 1] = float("inf")

    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.data.mixup, settings.optim.max_skipped_steps = 0.8, 0
    run = start_run(settings)
    with pytest.raises(Diverged):
        fit(build(settings), run, callbacks=[Break()])
    file = run.path / "nonfinite-3.pt"
    content = torch.load(file, weights_only=True)
    assert content["step"] == 3 and torch.isinf(content["state_dict"]["task.model.head.fc.weight"]).sum() == 1
    assert main(["replay", str(file)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "first not finite: the output of model.head.fc (Linear), 16 of 160 values" in shown
    del content["batches"]
    torch.save(content, tmp_path / "other.pt")
    assert main(["replay", str(tmp_path / "other.pt")]) == 1
    assert "other.pt is no nonfinite-STEP.pt" in capsys.readouterr().err


def test_gradients_that_are_not_finite(tmp_path, monkeypatch):
    """A finite loss, and a square root at 0 in its gradient; the replay's loss is that of the training, exactly."""
    loss = Classification.loss
    monkeypatch.setattr(
        Classification, "loss", lambda self, *a: loss(self, *a) + (self.model.head.fc.bias * 0).abs().sqrt().sum()
    )
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.optim.max_skipped_steps = 0
    run = start_run(settings)
    with pytest.raises(Diverged, match=r"the gradients became nan \(the loss is 2\.\d+\) in epoch 1, batch 1 of 4"):
        fit(build(settings), run)
    again = replay(run.path / "nonfinite-1.pt")
    assert again.reproduced and again.losses == again.stored
    assert again.first == "the gradient of model.head.fc.bias (Linear), 10 of 10 values"


class Fake:
    """A trainer whose precision has, or has not, a GradScaler."""

    world_size, global_step, strategy = 1, 0, None

    def __init__(self, scaler):
        self.precision_plugin = SimpleNamespace(scaler=scaler)


@pytest.mark.parametrize(("scaler", "loss", "skipped"), [(None, 1.0, 1), ("one", 1.0, 0), ("one", float("nan"), 1)])
def test_the_scaler_skips_overflowing_gradients_by_itself(tmp_path, monkeypatch, scaler, loss, skipped):
    """With a GradScaler infinite gradients are its own business, and stay for it to see."""
    monkeypatch.setattr(SkipNonFinite, "_write", lambda *_: None)
    module = TrainingModule.__new__(TrainingModule)
    torch.nn.Module.__init__(module)
    module.layer, module.skipped_steps = torch.nn.Linear(2, 1), 0
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    callback = SkipNonFinite(RunDir(tmp_path), 0)
    callback.after(torch.tensor(loss))
    optimizer = torch.optim.SGD(module.parameters())
    callback.on_before_optimizer_step(Fake(scaler), module, optimizer)  # type: ignore[arg-type]
    assert (callback.total, module.skipped_steps) == (skipped, skipped)
    assert all((p.grad is None) == (scaler is None) for p in module.parameters())
