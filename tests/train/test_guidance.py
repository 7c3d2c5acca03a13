"""MESA and distillation: the values of their losses, what the teachers are, and exact resumption with both."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.train.interrupted import same_tensors, train
from tests.train.tiny import tiny_settings
from vssm.data.preprocess import Preprocess
from vssm.inference.checkpoint import read_checkpoint
from vssm.inference.predictor import Predictor
from vssm.tasks.classification import create_classifier
from vssm.train.fit import build, fit
from vssm.train.guidance import LearnFromAverage, LearnFromTeacher, distillation_loss, soft_cross_entropy
from vssm.train.teacher import Teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run to learn from."""
    settings = tiny_settings()
    settings.trainer.max_epochs = 1
    run, _, _ = train(tmp_path_factory.mktemp("runs") / "teacher", settings)
    return run


def logits(seed):
    return 3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_losses_by_hand(temperature):
    ours, theirs = logits(0).double(), logits(1).double()
    p, q = (theirs / temperature).softmax(-1), (ours / temperature).softmax(-1)
    expected = -(p * q.log()).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(ours, theirs, temperature).double(), expected, rtol=1e-6, atol=0)
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    found = distillation_loss(ours, theirs, "soft", temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    expected = -ours.log_softmax(-1)[torch.arange(5), theirs.argmax(-1)].mean()
    torch.testing.assert_close(distillation_loss(ours, theirs, "hard", temperature).double(), expected)


def test_mesa_has_the_gradient_of_the_divergence():
    """Du et al. 2022 write a KL divergence; what it has beyond the cross entropy does not depend on the network."""
    ours, theirs = logits(0).requires_grad_(), logits(1)
    (found,) = torch.autograd.grad(soft_cross_entropy(ours, theirs), ours)
    divergence = F.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(found, torch.autograd.grad(divergence, ours)[0])


def test_mesa_in_a_training(tmp_path, monkeypatch):
    """From the second epoch on, with the averages as they are then: a network that is freshly built with them answers
    the same, so nothing that evaluation derives from the weights (folded kernels) is out of date."""
    settings = tiny_settings()
    settings.model.name, settings.model.drop_path, settings.data.mixup = "spatial_mamba_nano", 0.3, 0.8
    settings.optim.mesa_weight, settings.optim.mesa_start_epoch, settings.optim.mesa_temperature = 1.5, 1, 2.0
    settings.trainer.max_epochs, settings.trainer.limit_train_batches = 2, 3
    steps, seen, guide = [], [], LearnFromAverage.__call__

    def spied(self, loss, images, answers):
        found = guide(self, loss, images, answers)
        steps.append(self.trainer.global_step)
        if self.trainer.current_epoch < 1:
            assert found is loss
            return found
        fresh = create_classifier("spatial_mamba_nano", 10, 1, drop_path=0.3, **settings.model.args)
        fresh.load_state_dict(self.averages.module.task.model.state_dict())
        with torch.no_grad():
            theirs = fresh.eval()(images)
        assert not theirs.requires_grad
        expected = loss - 1.5 * ((theirs / 2).softmax(-1) * (answers / 2).log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(found, expected)
        seen.append(theirs)
        return found

    monkeypatch.setattr(LearnFromAverage, "__call__", spied)
    train(tmp_path / "run", settings)
    assert steps == list(range(6)) and len(seen) == 3


def everything(teacher):
    settings = tiny_settings(save_every_n_steps=1)
    settings.model.name, settings.data.mixup, settings.data.cutmix = "spatial_mamba_nano", 0.8, 1.0
    optim, settings.data.repeats = settings.optim, 3
    optim.mesa_weight, optim.mesa_start_epoch, optim.validate_raw, optim.ema_warmup = 1.0, 1, True, False
    optim.distill_teacher, optim.distill_weight, optim.distill_temperature = str(teacher.path), 0.3, 2.0
    settings.trainer.max_epochs, settings.trainer.limit_train_batches = 2, 3
    return settings


def test_resume_is_exact_and_teachers_are_not_saved(teacher, tmp_path):
    run, whole_rows, whole = train(tmp_path / "whole", everything(teacher))
    _, resumed_rows, resumed = train(tmp_path / "resumed", everything(teacher), kill_at=4)
    assert resumed_rows == whole_rows
    for entry in ("state_dict", "current_model_state"):
        same_tensors(resumed[entry], whole[entry])
    experiment = build(everything(teacher), weights=False)
    own = experiment.model.state_dict()
    assert set(whole["state_dict"]) == {f"task.model.{name}" for name in own}
    # The weights of the latest step, validated in the same pass:
    stored = read_checkpoint(run.last)
    raw = {name: whole["current_model_state"][f"task.model.{name}"] for name in own}
    for weights, suffix in ((stored.weights, ""), (raw, "_raw")):
        found = Predictor.of(replace(stored, weights=weights)).evaluate(limit_batches=3).metrics()
        for name in ("val_loss", "val_top1", "val_top5"):
            assert float(whole_rows[-1][name + suffix]) == pytest.approx(found[name], abs=1e-6)
    assert whole_rows[-1]["val_loss"] != whole_rows[-1]["val_loss_raw"]
    # Another teacher would not go on as before:
    assert stored.teacher == experiment.teacher.fingerprint()
    with torch.no_grad():
        experiment.teacher.model.head.fc.bias[0] += 1
    experiment.module.description["teacher"] = experiment.teacher.fingerprint()
    with pytest.raises(ValueError, match="was trained with another teacher"):
        fit(experiment, run, resume=True)


def test_a_teacher_gets_its_own_normalisation():
    pixels = torch.rand(2, 3, 4, 4)
    own = Preprocess((3, 4, 4), (0.5, 0.4, 0.3), (0.2, 0.3, 0.5))
    students = Preprocess((3, 4, 4), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))

    def normalised(preprocess):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
        return (pixels - mean) / std

    found = Teacher(torch.nn.Identity(), own, students)(normalised(students))
    torch.testing.assert_close(found, normalised(own))


def test_the_loss_is_shared(teacher):
    """0.7 of the labels' loss and 0.3 of the teacher's, which is the run's network."""
    settings = everything(teacher)
    experiment = build(settings)
    images, answers = torch.randn(4, 1, 32, 32), logits(0)[:4, :5].repeat(1, 2)
    with torch.no_grad():
        theirs = read_checkpoint(teacher.path).create_model()(images)
    found = LearnFromTeacher(experiment.teacher, settings.optim)(torch.tensor(2.0), images, answers)
    expected = 0.7 * 2 + 0.3 * distillation_loss(answers, theirs, "soft", 2.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("nonsense", "optim.distill_teacher: unknown model 'nonsense'"),
        ("runs/none", "optim.distill_teacher: runs/none does not exist"),
        ("vmamba_nano=nowhere.pth", "optim.distill_teacher: nowhere.pth does not exist"),
    ],
)
def test_a_teacher_that_is_not_there(named, words):
    settings = tiny_settings()
    settings.optim.distill_teacher = named
    with pytest.raises(ValueError, match=words):
        build(settings)


def test_a_teacher_of_other_classes(teacher, monkeypatch):
    settings = tiny_settings()
    settings.optim.distill_teacher = str(teacher.path)
    for classes, words in (
        (("a", "b"), "knows 2 classes, the images are of 10"),
        (tuple("abcdefghij"), "other classes"),
    ):
        stored = replace(read_checkpoint(teacher.path), classes=classes)
        predictor = replace(Predictor.of(read_checkpoint(teacher.path)), classes=stored.classes)
        monkeypatch.setattr("vssm.train.teacher.load_predictor", lambda *_, found=predictor: found)
        with pytest.raises(ValueError, match=words):
            build(settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mesa_weight": 1.0, "ema_decay": 0.0}, "mesa_weight is 1.0 with optim.ema_decay 0; there are no averaged"),
        ({"validate_raw": True, "ema_decay": 0.0}, "validate_raw is True with optim.ema_decay 0"),
        ({"mesa_weight": 1.0, "mesa_start_epoch": 3}, "mesa_start_epoch is 3 of trainer.max_epochs 3, so MESA would"),
        ({"mesa_temperature": 0.0}, r"mesa_temperature is 0.0; it must be in \(0, inf\)"),
        ({"distill_weight": 0.3}, "distill_weight is 0.3 without a teacher; set optim.distill_teacher"),
        ({"distill_weight": 1.5}, r"distill_weight is 1.5; it must be in \(0, 1\]"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    settings = tiny_settings()
    for name, value in changes.items():
        setattr(settings.optim, name, value)
    with pytest.raises(ValueError, match=words):
        settings.check()


def test_only_classifiers_learn_from_answers():
    settings = tiny_settings(task="segmentation")
    settings.data.name, settings.optim.mesa_weight = "masks", 1.0
    with pytest.raises(ValueError, match=r"optim.mesa_weight is 1.0; it has a meaning for task classification only"):
        settings.check()
