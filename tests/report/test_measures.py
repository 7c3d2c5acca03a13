import math

import pytest
import torch

from vssm.report.measures import Measure

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


def quality_of(read, batch=4, **options):
    logits, labels = logits_of(read)
    measure = Measure(3, **options)
    for start in range(0, len(read), batch):
        measure.update(logits[start : start + batch], labels[start : start + batch])
    return measure.result()


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
    # The third class is never read and never true: it cannot be judged.
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


def test_only_the_surest_mistakes_are_kept():
    assert [m.index for m in quality_of(READ, mistakes=2).mistakes] == [2, 5]


def test_wilson_interval():
    # 95 % interval of 7 out of 10, from any table.
    assert quality_of(READ).top1_interval() == (pytest.approx(0.3968, abs=1e-4), pytest.approx(0.8922, abs=1e-4))


def test_bins_agree_with_torchmetrics_also_at_full_confidence():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 7, generator=generator) * 4
    logits[:50] *= 100  # softmax gives exactly 1
    labels = torch.randint(7, (400,), generator=generator)
    measure = Measure(7)
    measure.update(logits, labels)
    found = measure.result()
    assert sum(one.count for one in found.bins) == 400
    assert found.ece == pytest.approx(sum(abs(b.confidence - b.accuracy) * b.count for b in found.bins) / 400, abs=1e-5)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert found.top5 == pytest.approx(float(top5))


def test_images_without_a_finite_answer_count_as_wrong():
    logits, labels = logits_of(READ)
    logits[0] = float("nan")
    measure = Measure(3)
    measure.update(logits, labels)
    found = measure.result()
    assert (found.images, found.not_finite) == (10, 1)
    assert found.top1 == pytest.approx(0.6)
    assert found.support.tolist() == [4, 5, 0]
    assert [m.index for m in found.mistakes] == [2, 5, 8]


def test_nothing_finite_is_refused():
    measure = Measure(3)
    measure.update(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="4 validation images: NaN or infinity for every one"):
        measure.result()
