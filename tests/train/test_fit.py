"""Training, and its continuation to the last bit."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.train.interrupted import rows, same_tensors, train
from tests.train.tiny import tiny_settings
from vssm.inference.checkpoint import load_weights, read_checkpoint
from vssm.inference.predictor import Predictor
from vssm.inference.run_dir import RunDir
from vssm.tasks.classification import create_classifier
from vssm.tasks.classification.metrics import Score
from vssm.train.callbacks import SaveCheckpoints
from vssm.train.fit import build, fit, start_run
from vssm.train.stopping import Diverged
from vssm.weights import CATALOG
from vssm.weights.download import cached_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run, *found = train(tmp_path_factory.mktemp("runs") / "whole", tiny_settings())
    return run.path, *found


@pytest.mark.parametrize(
    ("kill_at", "save_every", "workers"),
    [(8, 0, 0), (7, 1, 0), (7, 3, 2), (9, 1, 0), (4, 4, 0)],
    ids=["epoch end", "mid epoch", "earlier step, workers", "first step of an epoch", "both at once"],
)
def test_resume_is_exact(whole, tmp_path, kill_at, save_every, workers):
    """Every logged loss and every weight equals the uninterrupted run's, wherever it was killed."""
    settings = tiny_settings(save_every_n_steps=save_every)
    settings.data.workers = workers
    _, resumed_rows, resumed = train(tmp_path / "run", settings, kill_at)
    assert resumed_rows == whole[1]
    for entry in ("state_dict", "current_model_state"):
        same_tensors(resumed[entry], whole[2][entry])


def test_resume_is_exact_with_accumulation_and_without_averages(tmp_path):
    def settings():
        made = tiny_settings(save_every_n_steps=1)
        made.optim.ema_decay = 0
        made.trainer.accumulate_grad_batches, made.trainer.max_epochs = 2, 2
        return made

    _, whole_rows, whole = train(tmp_path / "whole", settings())
    _, resumed_rows, resumed = train(tmp_path / "resumed", settings(), kill_at=3)
    assert [int(row["step"]) for row in whole_rows] == [1, 2, 2, 3, 4, 4]
    assert resumed_rows == whole_rows
    same_tensors(resumed["state_dict"], whole["state_dict"])


def test_a_training_starts_from_published_weights_by_name(tmp_path, monkeypatch):
    """The file is in the cache already, under the name that a download gives it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = tiny_settings()
    settings.model.init_from = "catalog:vmamba_tiny"
    source = create_classifier("vmamba_nano", 10, 1, **settings.model.args)
    file = cached_path(CATALOG["vmamba_tiny_s1l8"].url)
    file.parent.mkdir(parents=True)
    torch.save({"model": source.state_dict()}, file)
    same_tensors(build(settings).module.task.model.state_dict(), source.state_dict())


def test_a_full_disk_at_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(path, *rest, **more):
        raise OSError(28, "No space left on device")

    settings = tiny_settings(out=str(tmp_path / "run"))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: .*config\.yaml'"):
        start_run(settings)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_read_as_plain_data_only(whole, tmp_path, monkeypatch):
    """Everything that a resumed run loads, Lightning's part included, is loaded with weights_only=True."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    load, seen = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **k: seen.append(k.get("weights_only")) or load(*a, **k))
    settings = tiny_settings(out=str(run))
    settings.trainer.max_epochs = 4
    fit(build(settings, weights=False), RunDir(run), resume=True)
    assert len(seen) >= 2 and all(seen)


def test_metrics_rows(whole):
    _, found, _ = whole
    assert [row["step"] for row in found if row["train_loss"]] == [str(step) for step in range(1, 13)]
    assert [(row["epoch"], row["step"]) for row in found if row["val_top1"]] == [("1", "4"), ("2", "8"), ("3", "12")]
    assert float(found[0]["lr"]) == pytest.approx(1e-6)
    assert float(found[5]["lr"]) == pytest.approx(3e-3)


def test_the_learning_rate_is_scaled_by_the_images_per_step(tmp_path):
    """16 images in 2 batches of a step: a quarter of the rates for 128."""
    settings = tiny_settings()
    settings.optim.lr_batch, settings.trainer.accumulate_grad_batches = 128, 2
    _, found, _ = train(tmp_path / "run", settings)
    rates = [float(row["lr"]) for row in found if row["train_loss"]]
    assert rates[0] == pytest.approx(1e-6 / 4) and max(rates) == pytest.approx(3e-3 / 4)


def test_checkpoint_is_plain_and_complete(whole):
    path, found, last = whole
    assert last["vssm"]["classes"] == list("0123456789")
    assert last["vssm"]["settings"] == RunDir(path).read_config()
    best = torch.load(RunDir(path).best, weights_only=True)
    accuracy = {int(row["step"]): float(row["val_top1"]) for row in found if row["val_top1"]}
    assert accuracy[best["global_step"]] == max(accuracy.values())


def test_averaged_weights_are_saved_and_evaluated(whole):
    path, found, last = whole
    name = "task.model.head.fc.weight"
    assert not torch.equal(last["state_dict"][name], last["current_model_state"][name])
    stored = read_checkpoint(RunDir(path).last)
    assert torch.equal(stored.weights["head.fc.weight"], last["state_dict"][name])
    metrics = Predictor.of(stored).evaluate(limit_batches=3).metrics()
    logged = {name: float(found[-1][name]) for name in ("val_loss", "val_top1", "val_top5")}
    assert (metrics.pop("val_images"), metrics.pop("val_unreadable")) == (48, 0)
    assert metrics == pytest.approx(logged, abs=1e-6)


def test_averages_follow_their_formula(whole):
    """EMA: the first step copies, each further one moves by 1 - decay, which grows to 0.8."""
    settings = tiny_settings()
    seen = []

    class Record(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen.append(module.task.model.head.fc.weight.detach().clone())

    path = whole[0].parent / "recorded"
    settings.out = str(path)
    fit(build(settings), start_run(settings), callbacks=[Record()])
    average = seen[0]
    for step, weight in enumerate(seen[1:], start=2):
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(whole[2]["state_dict"]["task.model.head.fc.weight"], average)


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    settings = tiny_settings(save_every_n_steps=1)
    settings.out = str(tmp_path / "run")
    run = start_run(settings)
    real_save, calls = torch.save, []

    def save(content, path, *rest):
        calls.append(path)
        if len(calls) == 3:
            path.write(b"half")
            raise OSError(28, "No space left on device")
        real_save(content, path, *rest)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        fit(build(settings), run)
    assert torch.load(run.last, weights_only=True)["global_step"] == 2
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["last.ckpt", "step-1.ckpt"]


def test_best_keeps_the_higher_score(tmp_path):
    callback = SaveCheckpoints(RunDir.create(tmp_path / "run"), "val_top1")

    class FakeTrainer:
        is_global_zero, global_step, callback_metrics = True, 0, {}
        lightning_module = torch.nn.Linear(1, 1)
        strategy = SimpleNamespace(reduce_boolean_decision=lambda decision: decision)

        def save_checkpoint(self, path):
            path.write_text(str(self.callback_metrics["val_top1"]))

    trainer = FakeTrainer()
    for score in (0.5, 0.8, 0.7, float("nan")):
        trainer.callback_metrics = {"val_top1": score}
        callback.on_validation_end(trainer, None)
        callback.on_train_epoch_end(trainer, None)
    assert callback.run.best.read_text() == "0.8"
    assert callback.run.last.read_text() == "nan"


def test_resume_is_exact_with_everything_at_once(tmp_path):
    """Mixing, frozen parts, class weights, layer-wise decay and early stopping; in the middle of an epoch and at one's
    end."""

    def settings():
        made = tiny_settings(save_every_n_steps=1, early_stopping=5)
        made.model.name, made.model.freeze = "spatial_mamba_nano", ["stem.*", "stages.0.*"]
        made.data.mixup, made.data.cutmix, made.data.mixup_prob = 0.8, 1.0, 0.7
        made.data.class_weights, made.data.batch_size, made.optim.layer_decay = "balanced", 15, 0.5
        made.trainer.limit_train_batches = 3
        return made

    _, whole_rows, whole = train(tmp_path / "whole", settings())
    for kill_at in (6, 7):
        _, resumed_rows, resumed = train(tmp_path / f"resumed at {kill_at}", settings(), kill_at)
        assert resumed_rows == whole_rows, kill_at
        same_tensors(resumed["state_dict"], whole["state_dict"])
    losses = [float(row["train_loss"]) for row in whole_rows if row["train_loss"]]
    assert len(losses) == 9 and len(set(losses)) == 9


def test_frozen_parts_stay(tmp_path):
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.model.name, settings.model.freeze, settings.trainer.max_epochs = "spatial_mamba_nano", ["stem.*"], 1
    experiment = build(settings)
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    fit(experiment, start_run(settings))
    for name, value in experiment.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("stem."), name


def test_early_stopping(tmp_path, monkeypatch):
    """Ends after two validations that are not better; a resumed run that had ended so does not go on."""
    scores = iter([0.2, 0.5, 0.4, 0.5, 0.9, 0.9])
    logged = Score.logged
    monkeypatch.setattr(Score, "logged", lambda self: logged(self) | {"val_top1": next(scores)})
    settings = tiny_settings(early_stopping=2, out=str(tmp_path / "run"))
    settings.trainer.max_epochs = 6
    run = start_run(settings)
    fit(build(settings), run)
    assert [row["val_top1"][:3] for row in rows(run) if row["val_top1"]] == ["0.2", "0.5", "0.4", "0.5"]
    before = run.metrics.read_text()
    assert fit(build(settings, weights=False), run, resume=True) == {}
    assert run.metrics.read_text() == before


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_nan_stops_and_keeps_the_last_checkpoint(tmp_path, where):
    """Step 7 is the third of the second epoch; its own checkpoint must not be written."""

    class Spoil(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 6 and where == "loss":
                batch[0].fill_(float("nan"))

        def on_before_zero_grad(self, trainer, module, optimizer):
            if trainer.global_step == 6 and where == "weights":
                with torch.no_grad():
                    module.task.model.head.fc.bias[0] = float("inf")

    settings = tiny_settings(save_every_n_steps=1, out=str(tmp_path / "run"))
    settings.optim.max_skipped_steps = 0
    run = start_run(settings)
    message = {
        "loss": r"the training loss became nan in epoch 2, batch 3 of 4 \(optimizer step 7\); .*: a lower --lr",
        "weights": r"the (weights|training loss) became (NaN|nan|inf)",
    }[where]
    with pytest.raises(Diverged, match=message):
        fit(build(settings), run, callbacks=[Spoil()])
    kept = torch.load(run.last, weights_only=True)
    assert kept["global_step"] == 6
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


def test_a_full_disk_is_named_and_the_last_checkpoint_survives(tmp_path, monkeypatch):
    """A real torch.save into a file that takes no more: torch's own error would hide the reason."""
    settings = tiny_settings(save_every_n_steps=1, out=str(tmp_path / "run"))
    run = start_run(settings)
    saves = []

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 20_000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    real_open = Path.open

    def open_(path, mode="r", *rest, **more):
        if "last.ckpt" in path.name and mode == "wb":
            saves.append(path)
            return Full(path, "w") if len(saves) == 3 else real_open(path, mode, *rest, **more)
        return real_open(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(OSError, match=r"No space left on device: .*last\.ckpt'"):
        fit(build(settings), run)
    monkeypatch.undo()
    assert torch.load(run.last, weights_only=True)["global_step"] == 2
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["last.ckpt", "step-1.ckpt"]


def test_another_head_on_a_trained_body(whole):
    path = whole[0]
    settings = tiny_settings()
    settings.model.init_from, settings.model.head = str(path), "reset"
    model = build(settings).model
    stored = read_checkpoint(path)
    assert torch.equal(model.stem.conv1.weight, stored.weights["stem.conv1.weight"])
    assert not torch.equal(model.head.fc.weight, stored.weights["head.fc.weight"])
    load_weights(model, path)
    assert torch.equal(model.head.fc.weight, stored.weights["head.fc.weight"])


def test_another_timm_model_starts_from_its_own_checkpoint(tmp_path):
    settings = tiny_settings()
    settings.model.name, settings.model.args, settings.trainer.max_epochs = "test_resnet", {}, 1
    train(tmp_path / "run", settings)
    settings.model.init_from, settings.model.head = str(tmp_path / "run"), "reset"
    stored = read_checkpoint(tmp_path / "run")
    model = build(settings).model
    assert torch.equal(model.layer1[0].conv1.weight, stored.weights["layer1.0.conv1.weight"])
    assert not torch.equal(model.fc.weight, stored.weights["fc.weight"])
    load_weights(model, tmp_path / "run")
    assert torch.equal(model.fc.weight, stored.weights["fc.weight"])
    with pytest.raises(
        ValueError, match=r"last\.ckpt does not fit the model; nothing was loaded\.\nmissing, \d+: stem"
    ):
        load_weights(create_classifier("test_convnext", 10, 1), tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_reduced_precision_and_channels_last_train(tmp_path):
    settings = tiny_settings()
    settings.trainer.precision, settings.model.channels_last, settings.trainer.max_epochs = "bf16-mixed", True, 1
    settings.data.mixup, settings.data.class_weights = 0.5, "balanced"
    _, found, last = train(tmp_path / "run", settings)
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())
    assert float(found[-1]["val_loss"]) < 5


@pytest.mark.full
@pytest.mark.parametrize("name", ["test_resnet", "vmamba_nano"])
def test_compiled_training(tmp_path, name):
    """The same losses as without, up to rounding, and a checkpoint with plain names."""
    found = {}
    for compiled in (False, True):
        torch.compiler.reset()
        settings = tiny_settings()
        settings.model.name, settings.model.compile, settings.trainer.max_epochs = name, compiled, 1
        settings.model.drop_path, settings.data.augment = 0.0, False
        settings.model.args = {} if name == "test_resnet" else settings.model.args
        _, found[compiled], last = train(tmp_path / str(compiled), settings)
        assert not any("_orig_mod" in key for key in last["state_dict"])
    for plain, compiled in zip(found[False], found[True], strict=True):
        for column in ("train_loss", "val_loss"):
            if plain[column]:
                assert float(compiled[column]) == pytest.approx(float(plain[column]), rel=1e-3)


def test_a_failed_compilation_is_named(tmp_path, monkeypatch):
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.model.compile = True

    def failing(graph, inputs):
        raise RuntimeError("no C++ compiler")

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_(self, backend=failing))
    with pytest.raises(ValueError, match=r"model\.compile: torch\.compile failed \(.*no C\+\+ compiler"):
        fit(build(settings), start_run(settings))


@pytest.mark.parametrize("damage", ["empty", "half", "text", "foreign"])
def test_damaged_checkpoints_are_named(whole, tmp_path, damage):
    path = tmp_path / "bad.ckpt"
    shutil.copy(RunDir(whole[0]).last, path)
    if damage == "foreign":
        torch.save({"model": {"weight": torch.zeros(1)}}, path)
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"<html></html>"}[damage])
    with pytest.raises(ValueError, match=r"bad\.ckpt"):
        read_checkpoint(path)
