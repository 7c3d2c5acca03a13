"""The table of tasks: what a training, an evaluation and a report ask of each."""

import inspect
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from tests.train.tiny import tiny_settings
from vssm.data.batches import Batch
from vssm.inference.checkpoint import read_checkpoint
from vssm.inference.predictor import Predictor
from vssm.tasks import TASKS, find_task
from vssm.tasks.task import Task
from vssm.train.fit import build, fit, start_run


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_what_is_asked_of_one(name):
    task = find_task(name)
    assert task.name == name and task.monitor in task.columns
    for asked, function in inspect.getmembers(Task, inspect.isfunction):
        if not asked.startswith("_"):
            assert inspect.signature(getattr(type(task), asked)).parameters.keys() == (
                inspect.signature(function).parameters.keys()
            ), asked


def test_an_unknown_task_is_named():
    settings = tiny_settings()
    settings.task = "clasification"
    with pytest.raises(ValueError, match=r"task is 'clasification'; expected .* or segmentation; nearest: class"):
        build(settings)


def test_results_of_a_batch():
    task = TASKS["classification"]
    outputs = torch.tensor([[0.0, 2.0, 1.0], [float("nan"), 0.0, 1.0]])
    first, second = task.results(outputs, ("a", "b", "c"), 2)
    assert [name for name, _ in first] == ["b", "c"]
    assert [value for _, value in first] == pytest.approx(outputs[0].softmax(-1)[[1, 2]].tolist())
    assert second is None
    image = Image.new("L", (3, 3))
    assert task.draw(image, first, ("a", "b", "c")) is image


class Counted:
    """Metrics of a made-up task: how many images, and the sum of their means."""

    def __init__(self, total=0.0, images=0):
        self.total, self.images = total, images

    def logged(self):
        return {"val_loss": 1.0, "val_sum": self.total, "val_images": float(self.images)}

    def problem(self):
        return None


class CountingMetrics(nn.Module):
    def __init__(self):
        super().__init__()
        self.reset()

    def update(self, outputs, batch: Batch):
        self.found.total += float(outputs.detach().sum())
        self.found.images += len(batch.targets)

    def compute(self):
        return Counted(self.found.total, self.found.images)

    def reset(self):
        self.found = Counted()


class Summing(type(TASKS["classification"])):
    """Another task, with metrics, columns and a monitor of its own."""

    def metrics(self, splits, details=0):
        return CountingMetrics()


def test_a_task_needs_a_line_of_the_table_only(tmp_path, monkeypatch):
    """Training, metrics.csv, the best checkpoint and an evaluation follow a task that they do not know."""
    task = replace(Summing(), name="summing", monitor="val_sum", columns=("val_loss", "val_sum"))
    monkeypatch.setitem(TASKS, "summing", task)
    settings = tiny_settings(out=str(tmp_path / "run"))
    settings.task, settings.trainer.max_epochs = "summing", 1
    run = start_run(settings)
    metrics = fit(build(settings), run)
    run.close()
    assert set(metrics) >= {"val_sum", "val_loss"}
    columns = "epoch,step,lr,train_loss,val_loss,val_sum,skipped_steps,images_per_second"
    assert run.metrics.read_text().splitlines()[0] == columns
    assert run.best.exists()
    predictor = Predictor.of(read_checkpoint(run.path))
    assert predictor.task is task
    found = predictor.evaluate(limit_batches=3).metrics()
    assert found["val_sum"] == pytest.approx(metrics["val_sum"], rel=1e-4) and found["val_images"] == 48
