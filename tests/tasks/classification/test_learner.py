import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vssm.tasks.classification import Classification, balanced_weights, class_names, create_classifier


def test_any_timm_model():
    model = create_classifier("test_convnext", num_classes=7, in_chans=1, drop_path=0.1)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "words"),
    [("vmamba_tini", "nearest: vmamba_tiny"), ("qqqqqq", "unknown model 'qqqqqq' (`vssm models`")],
)
def test_unknown_names(name, words):
    with pytest.raises(ValueError) as error:
        create_classifier(name)
    assert words in str(error.value)


def test_unknown_argument():
    with pytest.raises(ValueError, match="model test_convnext takes no argument 'widht'"):
        create_classifier("test_convnext", widht=3)


def smoothed(logits, labels, smoothing):
    """The loss of each image by its definition."""
    logs = logits.log_softmax(-1)
    return -((1 - smoothing) * logs.gather(1, labels[:, None]).squeeze(1) + smoothing * logs.mean(1))


def test_label_smoothing():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = Classification(nn.Identity(), label_smoothing=0.2).loss(logits, labels)
    torch.testing.assert_close(loss, smoothed(logits, labels, 0.2).mean())


def test_balanced_weights():
    weights = balanced_weights([30, 10, 0, 60])
    torch.testing.assert_close(weights, torch.tensor([100 / 90, 100 / 30, 0, 100 / 180]))
    assert (weights * torch.tensor([30, 10, 0, 60])).sum() / 100 == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights(smoothing):
    """Each image counts by its class, also for the smoothed part; a blend of labels is the blend of their losses."""
    logits, labels, others = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 3, 2, 0, 1, 0])
    weights = torch.tensor([0.5, 2.0, 1.0, 50.0])
    task = Classification(nn.Identity(), smoothing, weights)

    def expected(of):
        return (weights[of] * smoothed(logits, of, smoothing)).mean()

    torch.testing.assert_close(task.loss(logits, labels), expected(labels))
    blend = 0.3 * F.one_hot(labels, 4) + 0.7 * F.one_hot(others, 4)
    torch.testing.assert_close(task.loss(logits, blend), 0.3 * expected(labels) + 0.7 * expected(others))
    assert "class_weights" not in task.state_dict()


def test_a_training_step():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    task = Classification(nn.Identity())
    loss, outputs = task.training_step(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
    assert float(task.running(outputs, labels)["top-1"]) == pytest.approx(2 / 3)
    mixed = Classification(nn.Identity(), mixing=lambda images, targets: (2 * images, torch.full((3, 2), 0.5)))
    loss, outputs = mixed.training_step(logits, labels)
    assert torch.equal(outputs, 2 * logits)
    torch.testing.assert_close(loss, -0.5 * outputs.log_softmax(-1).sum(1).mean())
    assert mixed.running(outputs, labels) == {}, "the labels are not those of a blend"


def test_weights_of_one_change_nothing():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    losses = [Classification(nn.Identity(), 0.1, w).loss(logits, labels) for w in (None, torch.ones(4))]
    torch.testing.assert_close(*losses)


def test_class_names():
    assert class_names(create_classifier("test_convnext", num_classes=3)) == ("0", "1", "2")
    assert class_names(create_classifier("test_convnext", num_classes=1000))[0].startswith("tench")
