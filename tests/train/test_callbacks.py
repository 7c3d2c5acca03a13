"""What is written while training, and when."""

import io
from types import SimpleNamespace

import pytest
import torch

from vssm.inference.run_dir import RunDir
from vssm.train.callbacks import SaveCheckpoints, WriteMetrics, read_metrics
from vssm.train.checkpoint_files import AtomicCheckpointIO
from vssm.train.module import TrainingModule
from vssm.train.stopping import Diverged


class FakeTrainer:
    """Counts how often last.ckpt is saved."""

    is_global_zero, world_size, accumulate_grad_batches, log_every_n_steps = True, 2, 1, 2
    num_training_batches = 4

    def __init__(self):
        self.global_step = self.current_epoch = 0
        self.callback_metrics = {}
        self.saved = []
        self.lightning_module = torch.nn.Linear(1, 1)
        self.optimizers = [SimpleNamespace(param_groups=[{"lr": 0.1}, {"lr": 0.3}])]
        self.state = SimpleNamespace(fn="fit")
        # Both processes have the same.
        self.strategy = SimpleNamespace(reduce=lambda value, reduce_op: value, reduce_boolean_decision=bool)

    def save_checkpoint(self, path):
        if path.name == "last.ckpt":
            self.saved.append(self.global_step)
        path.write_text(str(self.global_step))


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run")


def epoch(callback, trainer, score=None):
    for batch in range(trainer.num_training_batches):
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, None, None, None, batch)
    if score is not None:
        trainer.callback_metrics = {"val_top1": score}
        callback.on_validation_end(trainer, None)
    callback.on_train_epoch_end(trainer, None)
    trainer.current_epoch += 1


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [4, 8]), (1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 4, 6, 8]), (4, [4, 8])]
)
def test_when_the_last_checkpoint_is_written(run, every, steps):
    """Every n steps, and at the end of each epoch: once where both fall together."""
    callback, trainer = SaveCheckpoints(run, "val_top1", every), FakeTrainer()
    for score in (0.5, 0.6):
        epoch(callback, trainer, score)
    assert trainer.saved == steps


def test_the_best_checkpoint(run):
    """The highest score; one of NaN, or of an epoch that was not validated, is not better. It survives a resume."""
    callback, trainer = SaveCheckpoints(run, "val_top1"), FakeTrainer()
    for score, best in ((0.5, "4"), (None, "4"), (0.7, "12"), (float("nan"), "12"), (0.7, "12"), (0.6, "12")):
        epoch(callback, trainer, score)
        assert run.best.read_text() == best
    resumed = SaveCheckpoints(run, "val_top1")
    resumed.load_state_dict(callback.state_dict())
    epoch(resumed, trainer, 0.65)
    assert run.best.read_text() == "12"
    epoch(resumed, trainer, 0.71)
    assert run.best.read_text() == "32"


def test_weights_that_are_not_finite_are_not_saved(run):
    callback, trainer = SaveCheckpoints(run, "val_top1"), FakeTrainer()
    with torch.no_grad():
        trainer.lightning_module.weight.fill_(float("inf"))
    with pytest.raises(Diverged, match="the weights became NaN or infinite in epoch 1, by optimizer step 4: a lower"):
        epoch(callback, trainer, 0.5)
    assert not run.last.exists() and not run.best.exists()


class Module(TrainingModule):
    def __init__(self, loss):
        torch.nn.Module.__init__(self)
        self.latest_loss, self.skipped_steps = torch.tensor(loss), 0


def batches(writer, trainer, count, images=5):
    for number in range(count):
        writer.on_train_batch_start(trainer, None, None, number)
        trainer.global_step += 1
        batch = SimpleNamespace(targets=torch.zeros(images))
        writer.on_train_batch_end(trainer, Module(float(trainer.global_step)), None, batch, number)


def test_rows_of_metrics(run):
    """A row every second step with the highest learning rate, one per validation with the metrics of the task."""
    writer, trainer = WriteMetrics(run, ("val_loss", "val_score")), FakeTrainer()
    writer.on_train_start(trainer, None)
    batches(writer, trainer, 4)
    trainer.callback_metrics = {"val_loss": torch.tensor(0.5), "val_score": 0.25, "val_images": 9.0}
    writer.on_validation_end(trainer, None)
    first, second, validated = read_metrics(run.metrics)
    assert list(first) == [
        "epoch",
        "step",
        "lr",
        "train_loss",
        "val_loss",
        "val_score",
        "skipped_steps",
        "images_per_second",
    ]
    assert [(row["epoch"], row["step"], row["lr"], row["train_loss"]) for row in (first, second)] == [
        ("1", "2", "0.3", "2.0"),
        ("1", "4", "0.3", "4.0"),
    ]
    assert float(first["images_per_second"]) > 0
    assert {name: cell for name, cell in validated.items() if cell} == {
        "epoch": "1",
        "step": "4",
        "val_loss": "0.5",
        "val_score": "0.25",
    }


def test_nothing_is_written_for_a_validation_of_its_own(run):
    writer, trainer = WriteMetrics(run, ("val_loss",)), FakeTrainer()
    writer.on_train_start(trainer, None)
    trainer.state.fn, trainer.callback_metrics = "validate", {"val_loss": 1.0}
    writer.on_validation_end(trainer, None)
    assert read_metrics(run.metrics) == []


def test_a_resumed_run_removes_what_came_after_its_checkpoint(run):
    writer, trainer = WriteMetrics(run, ("val_loss",)), FakeTrainer()
    writer.on_train_start(trainer, None)
    batches(writer, trainer, 6)
    with run.metrics.open("a") as file:
        file.write("1,8,0.3,")  # cut off by a kill
    trainer.global_step = 4
    again = WriteMetrics(run, ("val_loss",))
    again.on_train_start(trainer, None)
    assert [row["step"] for row in read_metrics(run.metrics)] == ["2", "4"]
    batches(again, trainer, 2)
    assert [row["step"] for row in read_metrics(run.metrics)] == ["2", "4", "6"]


def test_only_the_first_process_writes(run):
    writer, trainer = WriteMetrics(run, ("val_loss",)), FakeTrainer()
    trainer.is_global_zero = False
    writer.on_train_start(trainer, None)
    batches(writer, trainer, 2)
    assert not run.metrics.exists()


def test_lines_that_are_not_whole_are_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,lr\n1,2,0.3\n1,,0.3\n1,x,0.3\n1,4\n")
    assert read_metrics(tmp_path / "metrics.csv") == [{"epoch": "1", "step": "2", "lr": "0.3"}]


def test_the_reason_of_a_failed_write_is_told(tmp_path, monkeypatch):
    """torch.save hides it behind an error of its own."""

    def save(content, file):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (as torch does)

    (tmp_path / "last.ckpt").write_text("the old one")
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match=r"No space left on device: .*last\.ckpt"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]

    def broken(content, file):
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    content = {"weight": torch.arange(3.0), "step": 7}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "a.ckpt")
    found = torch.load(io.BytesIO((tmp_path / "a.ckpt").read_bytes()), weights_only=True)
    assert torch.equal(found["weight"], content["weight"]) and found["step"] == 7
