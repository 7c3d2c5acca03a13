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
    [("vmamba_tini", "nearest: vmamba_tiny"), ("qqqqqq", "no model is called 'qqqqqq' (`vssm models`")],
)
def test_unknown_names(name, words):
    with pytest.raises(ValueError) as error:
        create_classifier(name)
    assert words in str(error.value)


def test_unknown_argument():
    with pytest.raises(ValueError, match="model test_convnext takes no argument 'widht'"):
        create_classifier("test_convnext", widht=3)


def test_metrics_over_uneven_batches():
    """Logits are the input itself: three batches of other sizes give what one pass over all of them gives."""
    logits, labels = torch.randn(20, 8), torch.randint(8, (20,))
    task = Classification(nn.Identity(), num_classes=8)
    for first, last in ((0, 9), (9, 10), (10, 20)):
        task.judge(logits[first:last], labels[first:last])
    results = task.results()
    assert results["val_images"] == 20
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert results["val_top1"].item() == pytest.approx((ranks < 1).float().mean().item())
    assert results["val_top5"].item() == pytest.approx((ranks < 5).float().mean().item())
    assert results["val_loss"].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_results_start_afresh():
    task = Classification(nn.Identity(), num_classes=3)
    logits = torch.eye(3)
    task.judge(logits, torch.tensor([0, 1, 2]))
    assert task.results()["val_top1"] == 1
    task.judge(logits, torch.tensor([1, 2, 0]))
    assert task.results()["val_top1"] == 0


def test_few_classes_have_no_top5():
    task = Classification(nn.Identity(), num_classes=5)
    task.judge(torch.eye(5), torch.arange(5))
    assert set(task.results()) == {"val_loss", "val_top1", "val_images"}


def smoothed(logits, labels, smoothing):
    """The loss of each image by its definition."""
    logs = logits.log_softmax(-1)
    return -((1 - smoothing) * logs.gather(1, labels[:, None]).squeeze(1) + smoothing * logs.mean(1))


def test_label_smoothing():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = Classification(nn.Identity(), 4, label_smoothing=0.2).training_loss(logits, labels)
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
    task = Classification(nn.Identity(), 4, smoothing, weights)

    def expected(of):
        return (weights[of] * smoothed(logits, of, smoothing)).mean()

    torch.testing.assert_close(task.training_loss(logits, labels), expected(labels))
    blend = 0.3 * F.one_hot(labels, 4) + 0.7 * F.one_hot(others, 4)
    torch.testing.assert_close(task.training_loss(logits, blend), 0.3 * expected(labels) + 0.7 * expected(others))
    assert "class_weights" not in task.state_dict()


def test_weights_of_one_change_nothing():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    losses = [Classification(nn.Identity(), 4, 0.1, w).training_loss(logits, labels) for w in (None, torch.ones(4))]
    torch.testing.assert_close(*losses)


def test_class_names():
    assert class_names(create_classifier("test_convnext", num_classes=3)) == ("0", "1", "2")
    assert class_names(create_classifier("test_convnext", num_classes=1000))[0].startswith("tench")
