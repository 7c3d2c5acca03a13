import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vssm.tasks.classification import Classification, class_names, create_classifier


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


def test_label_smoothing():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = Classification(nn.Identity(), 4, label_smoothing=0.2).training_loss(logits, labels)
    logs = logits.log_softmax(-1)
    expected = -(0.8 * logs.gather(1, labels[:, None]).squeeze(1) + 0.2 * logs.mean(1)).mean()
    torch.testing.assert_close(loss, expected)


def test_class_names():
    assert class_names(create_classifier("test_convnext", num_classes=3)) == ("0", "1", "2")
    assert class_names(create_classifier("test_convnext", num_classes=1000))[0].startswith("tench")
