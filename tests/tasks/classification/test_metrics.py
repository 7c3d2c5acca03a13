import math

import pytest
import torch
import torch.nn.functional as F

from vssm.data.batches import Batch
from vssm.tasks.classification.metrics import ClassificationMetrics

# Three classes, ten images, by hand: probability of the class read, class read, true class.
READ = [
    (0.95, 0, 0),
    (0.95, 0, 0),
    (0.90, 0, 1),
    (0.75, 1, 1),
    (0.75, 1, 1),
    (0.75, 1, 0),
    (0.75, 1, 1),
    (0.55, 0, 0),
    (0.55, 0, 1),
    (0.55, 0, 0),
]


def logits_of(read, classes=3):
    """Logits whose softmax gives the class read its probability and shares the rest among the others."""
    rows = torch.stack([torch.full((classes,), (1 - p) / (classes - 1)) for p, _, _ in read])
    for row, (p, k, _) in zip(rows, read):
        row[k] = p
    return rows.log(), torch.tensor([truth for _, _, truth in read])


def evaluated(logits, labels, classes, batch=4, details=24):
    metrics = ClassificationMetrics(classes, details)
    for start in range(0, len(labels), batch):
        metrics.update(logits[start : start + batch], Batch(None, labels[start : start + batch]))
    return metrics.compute()


def quality_of(read, **options):
    return evaluated(*logits_of(read), 3, **options)


def test_by_hand():
    found = quality_of(READ)
    assert found.images == 10
    assert found.top1 == pytest.approx(0.7)
    assert found.top5 is None
    assert found.confusion.tolist() == [[4, 1, 0], [2, 3, 0], [0, 0, 0]]
    assert found.support.tolist() == [5, 5, 0]
    assert found.precision[:2].tolist() == pytest.approx([4 / 6, 3 / 4])
    assert found.recall[:2].tolist() == pytest.approx([4 / 5, 3 / 5])
    assert found.f1[:2].tolist() == pytest.approx([8 / 11, 6 / 9])
    # The third class is never read and never true: it cannot be evaluated.
    assert all(math.isnan(values[2]) for values in (found.precision, found.recall, found.f1))
    # Bins of 1/15: three around 0.55, four around 0.75, one at 0.90, two at 0.95.
    expected = [(0.55, 2 / 3, 3), (0.75, 3 / 4, 4), (0.90, 0, 1), (0.95, 1, 2)]
    for one, (confidence, accuracy, count) in zip(found.bins, expected, strict=True):
        assert (one.confidence, one.accuracy, one.count) == (
            pytest.approx(confidence),
            pytest.approx(accuracy),
            count,
        )
    assert found.ece == pytest.approx((3 * (2 / 3 - 0.55) + 4 * 0 + 1 * 0.9 + 2 * 0.05) / 10, abs=1e-6)
    nll = [-math.log(p if read == truth else (1 - p) / 2) for p, read, truth in READ]
    assert found.loss == pytest.approx(sum(nll) / 10, rel=1e-5)
    assert [(m.index, m.truth, m.read) for m in found.mistakes] == [(2, 1, 0), (5, 0, 1), (8, 1, 0)]
    assert [m.confidence for m in found.mistakes] == pytest.approx([0.9, 0.75, 0.55])


def test_only_the_most_confident_mistakes_are_kept():
    assert [m.index for m in quality_of(READ, details=2).mistakes] == [2, 5]


def test_wilson_interval():
    # 95 % interval of 7 out of 10, from any table.
    assert quality_of(READ).top1_interval() == (pytest.approx(0.3968, abs=1e-4), pytest.approx(0.8922, abs=1e-4))


def test_bins_agree_with_torchmetrics_also_at_full_confidence():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 7, generator=generator) * 4
    logits[:50] *= 100  # softmax gives exactly 1
    labels = torch.randint(7, (400,), generator=generator)
    found = evaluated(logits, labels, 7, batch=400)
    assert sum(one.count for one in found.bins) == 400
    assert found.ece == pytest.approx(sum(abs(b.confidence - b.accuracy) * b.count for b in found.bins) / 400, abs=1e-5)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert found.top5 == pytest.approx(float(top5))


def test_images_without_a_finite_answer_count_as_wrong():
    logits, labels = logits_of(READ)
    logits[0] = float("nan")
    found = evaluated(logits, labels, 3)
    assert math.isnan(found.logged()["val_loss"]) and found.loss > 0, "a training shows it, a report leaves it out"
    assert (found.images, found.not_finite) == (10, 1)
    assert found.top1 == pytest.approx(0.6)
    assert found.support.tolist() == [4, 5, 0]
    assert [m.index for m in found.mistakes] == [2, 5, 8]


def test_nothing_finite_is_a_problem():
    found = evaluated(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.long), 3)
    assert (found.images, found.not_finite, found.top1) == (4, 4, 0)
    assert math.isnan(found.loss) and found.problem() == "NaN or infinity for every one of them"
    assert ClassificationMetrics(3).compute().problem() == "nothing to evaluate"


def test_the_least_confident_correct_images_are_kept():
    found = quality_of(READ, details=3)
    assert [(one.index, one.truth, one.read) for one in found.unsure] == [(7, 0, 0), (9, 0, 0), (3, 1, 1)]


def test_examples_are_named_by_their_indices():
    logits, labels = logits_of(READ)
    metrics = ClassificationMetrics(3, details=24)
    metrics.update(logits, Batch(None, labels, (), torch.arange(10) * 3))
    assert [one.index for one in metrics.compute().mistakes] == [6, 15, 24]


def test_over_uneven_batches():
    """Three batches of other sizes give what one pass over all of them gives."""
    logits, labels = torch.randn(20, 8), torch.randint(8, (20,))
    metrics = ClassificationMetrics(8)
    for first, last in ((0, 9), (9, 10), (10, 20)):
        metrics.update(logits[first:last], Batch(None, labels[first:last]))
    found = metrics.compute().logged()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found == {
        "val_images": 20,
        "val_top1": pytest.approx((ranks < 1).float().mean().item()),
        "val_top5": pytest.approx((ranks < 5).float().mean().item()),
        "val_loss": pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6),
    }


def test_reset_starts_afresh():
    metrics, logits = ClassificationMetrics(3, details=2), torch.eye(3)
    metrics.update(logits, Batch(None, torch.tensor([0, 1, 2])))
    assert metrics.compute().top1 == 1
    metrics.reset()
    metrics.update(logits, Batch(None, torch.tensor([1, 2, 0])))
    found = metrics.compute()
    assert (found.top1, found.images, int(found.confusion.sum()), len(found.mistakes)) == (0, 3, 3, 2)


def test_few_classes_have_no_top5():
    metrics = ClassificationMetrics(5)
    metrics.update(torch.eye(5), Batch(None, torch.arange(5)))
    assert set(metrics.compute().logged()) == {"val_loss", "val_top1", "val_images"}
