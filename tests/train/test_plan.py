"""What is announced before training starts."""

import io

from rich.console import Console

from tests.train.tiny import tiny_settings
from vssm.analysis.complexity import complexity
from vssm.train.fit import build
from vssm.train.plan import plan
from vssm_cli.show import announce


def test_plan():
    settings = tiny_settings()
    settings.trainer.limit_train_batches, settings.trainer.accumulate_grad_batches = None, 2
    settings.model.freeze = ["stem.*"]
    experiment = build(settings)
    found = plan(experiment)
    assert (found.batches_per_epoch, found.steps_per_epoch, found.steps) == (1437 // 16, 45, 135)
    assert found.images_per_step == 32
    counted = complexity(experiment.model, (1, 32, 32))
    assert (found.multiply_adds, found.trainable) == (counted.macs, counted.params)
    stem = sum(parameter.numel() for parameter in experiment.model.stem.parameters())
    assert found.parameters == counted.params + stem
    settings.trainer.max_steps = 50
    assert plan(experiment).steps == 50


def test_a_model_that_cannot_be_counted_is_reported(monkeypatch):
    def fail(model, size):
        raise NotImplementedError("no count for operator x")

    monkeypatch.setattr("vssm.analysis.one_image.complexity", fail)
    found = plan(build(tiny_settings()))
    assert (found.multiply_adds, found.not_counted) == (None, "no count for operator x")


def shown(settings):
    console = Console(file=io.StringIO(), width=200)
    announce(console, build(settings))
    return console.file.getvalue()


def test_announcement():
    settings = tiny_settings()
    settings.model.freeze, settings.data.class_weights = ["stem.*"], "balanced"
    settings.trainer.accumulate_grad_batches = 4
    text = shown(settings)
    assert "M train, the others are frozen)" in text
    assert "G multiply-adds" in text
    assert "start     random weights, also where they are frozen" in text
    assert "1437 to train, 360 to validate, 10 classes, 1x32x32" in text
    assert "139 to 146 training images each; weights in the loss 0.98 to 1.03" in text
    assert "3 epochs of 1 steps, 3 in all" in text
    assert "16 images x 4 batches accumulated = 64 per step, 32-true on cpu" in text
    assert "kernels" in text
    assert ", lr 0.003, seed 0" in text
    assert "memory    at least about " in text
    assert "MiB for weights, gradients, optimizer and averages, " in text
    assert " for the activations of 16 images" in text
    assert [line.split() for line in text.splitlines() if line.startswith("8 ")] == [["8", "139", "35"]]


def test_many_classes_are_summed_up(monkeypatch):
    monkeypatch.setattr("vssm_cli.show.MANY_CLASSES", 5)
    text = shown(tiny_settings())
    assert "139 to 146 training images each, median 144.5; fewest 8, most 1" in text
    assert "\n8 " not in text


def test_the_learning_rate_by_the_linear_rule():
    settings = tiny_settings()
    settings.optim.lr, settings.optim.lr_batch = 1e-3, 1024
    settings.trainer.accumulate_grad_batches = 4
    assert "lr 0.001 for 1024, here 6.25e-05 for 64, seed 0" in shown(settings)


def test_adaptors_and_teachers_are_announced():
    settings = tiny_settings()
    settings.model.adaptors, settings.model.freeze = ["t", "s"], ["base"]
    settings.optim.mesa_weight, settings.optim.mesa_start_epoch = 1.5, 2
    text = shown(settings)
    assert "adaptors  t, s around every SSM; " in text and " parameters train, " in text
    assert "MESA      from epoch 3, weight 1.5" in text
