"""mIoU, aAcc and mAcc by hand, and beside torchmetrics and scikit-learn."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import jaccard_score, recall_score
from torchmetrics.classification import MulticlassJaccardIndex

from vssm.data.batches import Batch
from vssm.tasks.segmentation.inference import LabelMap
from vssm.tasks.segmentation.metrics import SegmentationMetrics


def measured(pairs, classes, details=0, images=0, indices=()):
    """(found, true) label maps in one batch each."""
    metrics = SegmentationMetrics(classes, images, details)
    for position, (found, truth) in enumerate(pairs):
        found = found if isinstance(found, LabelMap) else LabelMap(torch.as_tensor(found, dtype=torch.uint8))
        index = torch.tensor([indices[position]]) if len(indices) else torch.empty(0, dtype=torch.long)
        batch = Batch(None, [torch.as_tensor(truth, dtype=torch.uint8)], (), index)
        metrics.update([found], batch)
    return metrics.compute()


def test_by_hand():
    """Classes 0 and 1 partly right, 2 only predicted, 3 nowhere; the ignored pixel was predicted as 2."""
    found = measured([([[0, 0, 1, 2], [1, 1, 2, 0]], [[0, 1, 1, 255], [1, 1, 0, 0]])], 4)
    assert found.confusion.tolist() == [[2, 0, 1, 0, 0], [1, 3, 0, 0, 0], [0] * 5, [0] * 5]
    assert found.iou[:3].tolist() == pytest.approx([2 / 4, 3 / 4, 0]) and math.isnan(found.iou[3])
    assert found.accuracy[:2].tolist() == pytest.approx([2 / 3, 3 / 4]) and found.accuracy[2:].isnan().all()
    assert found.logged() == pytest.approx(
        {"val_miou": (2 / 4 + 3 / 4 + 0) / 3, "val_aacc": 5 / 7, "val_macc": (2 / 3 + 3 / 4) / 2, "val_images": 1}
    )
    assert found.pixels.tolist() == [3, 4, 0, 0] and found.by_class()["%pixels"] == pytest.approx([3 / 7, 4 / 7, 0, 0])
    assert found.by_class()["%IoU"][:3] == found.iou[:3].tolist() and found.problem() is None


def random_pairs(classes, sizes, ignored=0.2):
    generator = torch.Generator().manual_seed(0)
    for height, width in sizes:
        truth = torch.randint(0, classes, (height, width), generator=generator)
        found = torch.where(
            torch.rand(height, width, generator=generator) < 0.6,
            truth,
            torch.randint(0, classes, (height, width), generator=generator),
        )
        truth[torch.rand(height, width, generator=generator) < ignored] = 255
        yield found.byte(), truth.byte()


def test_beside_torchmetrics_and_scikit_learn():
    pairs = list(random_pairs(7, [(13, 9), (20, 31), (5, 40), (1, 1)]))
    quality = measured(pairs, 7)
    found, truth = (torch.cat([pair[k].flatten().long() for pair in pairs]) for k in (0, 1))
    valid = truth != 255
    theirs = MulticlassJaccardIndex(7, average="none", ignore_index=255)
    assert torch.allclose(quality.iou, theirs(found, truth).double(), atol=1e-7)
    truth, found = truth[valid].numpy(), found[valid].numpy()
    assert quality.iou.tolist() == pytest.approx(jaccard_score(truth, found, average=None))
    assert quality.accuracy.tolist() == pytest.approx(recall_score(truth, found, average=None))
    logged = quality.logged()
    assert logged["val_aacc"] == pytest.approx((truth == found).mean())
    assert logged["val_miou"] == pytest.approx(jaccard_score(truth, found, average="macro"))


def test_the_batches_do_not_matter_and_processes_add_up():
    pairs = list(random_pairs(5, [(8, 8)] * 6))
    together = SegmentationMetrics(5)
    together.update([LabelMap(found) for found, _ in pairs], Batch(None, [truth for _, truth in pairs]))
    assert torch.equal(together.compute().confusion, measured(pairs, 5).confusion)
    first, second = (measured(pairs[k::2], 5).confusion for k in (0, 1))
    assert torch.equal(together.compute().confusion, first + second)
    assert together.confusion._reductions["counts"] is not None  # summed over processes
    together.reset()
    assert int(together.compute().confusion.sum()) == 0 and together.compute().images == 0


def test_what_is_not_finite_is_wrong():
    truth = [[0, 1, 1, 255]]
    wrong = LabelMap(torch.zeros(1, 4, dtype=torch.uint8), finite=False)
    quality = measured([(wrong, truth), ([[0, 1, 1, 0]], truth)], 2)
    assert (quality.images, quality.not_finite) == (2, 1)
    assert quality.logged()["val_aacc"] == 0.5 and quality.iou.tolist() == [0.5, 0.5]
    assert quality.problem() is None
    assert measured([(wrong, truth)], 2).problem() == "NaN or infinity for every one of them"


def test_rows_stand_for_outputs():
    """Through JSON and back: the same figures, also of images without any finite value or any pixel that counts."""
    pairs = [*random_pairs(4, [(6, 9), (3, 3)]), (torch.zeros(1, 2).byte(), torch.full((1, 2), 255).byte())]
    outputs = [LabelMap(found, finite=number != 1) for number, (found, _) in enumerate(pairs)]
    batch = Batch(None, [truth for _, truth in pairs])
    metrics, again = SegmentationMetrics(4), SegmentationMetrics(4)
    metrics.update(outputs, batch)
    rows = json.loads(json.dumps(metrics.rows))
    assert rows[1]["finite"] is False and {found for _, found, _ in rows[1]["confusion"]} == {4}
    assert rows[2] == {"finite": True, "confusion": []}
    again.update([rows[0], outputs[1], rows[2]], batch)
    assert again.rows == rows
    first, second = metrics.compute(), again.compute()
    assert torch.equal(first.confusion, second.confusion) and first.logged() == second.logged()
    assert (second.images, second.not_finite) == (3, 1)


def test_what_cannot_be_compared():
    assert measured([], 2).problem() == "nothing to evaluate"
    quality = measured([([[0, 1]], [[255, 255]])], 2)
    assert quality.problem().startswith("all pixels are ignored")
    assert math.isnan(quality.logged()["val_miou"]) and math.isnan(quality.logged()["val_aacc"])
    with pytest.raises(ValueError, match=r"labels of \[1, 3\] for an image that was labelled as \[1, 2\]"):
        measured([([[0, 1]], [[0, 1, 1]])], 2)


def test_examples_are_spread_evenly():
    pairs = list(random_pairs(3, [(2, 2)] * 10))
    quality = measured(pairs, 3, details=3, images=10, indices=range(10))
    assert [one.index for one in quality.examples] == [0, 3, 6]
    assert torch.equal(quality.examples[1].labels, pairs[3][0])
    assert measured(pairs, 3, details=0, images=10, indices=range(10)).examples == ()


def test_of_splits():
    splits = SimpleNamespace(classes=("a", "b"), val=range(12))
    assert SegmentationMetrics.of(splits, 4).kept == {0, 3, 6, 9}
