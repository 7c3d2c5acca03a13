"""Anchors, deltas, assignment and sampling, beside a plain reading of mmdet's rules in numpy."""

import math

import numpy as np
import pytest
import torch

from vssm.tasks.detection.anchors import Anchors
from vssm.tasks.detection.assign import BACKGROUND, IGNORED, Assigner, Sampler
from vssm.tasks.detection.coder import MAX_LOG_RATIO, BoxCoder


def boxes(count, seed=0, side=64.0):
    values = np.random.default_rng(seed).uniform(0, side, (count, 2, 2))
    values.sort(axis=1)
    return torch.from_numpy(values.reshape(count, 4).astype(np.float32) + np.array([0, 0, 1, 1])).float()


def iou(a, b):
    found = np.zeros((len(a), len(b)))
    for i, (x1, y1, x2, y2) in enumerate(a):
        for j, (u1, v1, u2, v2) in enumerate(b):
            inter = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
            found[i, j] = inter / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter)
    return found


# ---- anchors ----


def test_anchors_are_not_rounded_and_a_nominal_stride_apart():
    maps = [torch.zeros(1, 1, 7, 5), torch.zeros(1, 1, 4, 3)]  # 7 and 4: the second map was rounded up
    found = Anchors((4, 8))(maps)
    for level, stride, boxes in zip(maps, (4, 8), found):
        expected = []
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                for ratio in (0.5, 1.0, 2.0):
                    w, h = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                    x, y = column * stride, row * stride
                    expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        torch.testing.assert_close(boxes, torch.tensor(expected))
    assert (found[0] != found[0].round()).any()


@pytest.mark.parametrize("border", [-1, 0, 5])
def test_which_anchors_are_trained_on(border):
    anchors = Anchors((4, 8), scale=2)
    maps = [torch.zeros(2, 1, 24, 16), torch.zeros(2, 1, 12, 8)]  # 96 x 64 pixels for an image of 50 x 33
    levels = anchors(maps)
    usable = anchors.usable(maps, levels, (50, 33), multiple=32, border=border)
    expected = []
    for level, stride, found in zip(maps, (4, 8), levels):
        index = 0
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                for _ in range(3):
                    x1, y1, x2, y2 = found[index].tolist()
                    index += 1
                    ok = row < 64 / stride and column < 64 / stride
                    if border >= 0:
                        ok = ok and x1 >= -border and y1 >= -border and x2 < 33 + border and y2 < 50 + border
                    expected.append(ok)
    assert usable.tolist() == expected and 0 < sum(expected) < len(expected)


# ---- deltas ----


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_deltas_by_hand_and_back(stds):
    start, aims = boxes(50, 1), boxes(50, 2)
    coder = BoxCoder(stds)
    deltas = coder.encode(start, aims)
    expected = []
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(start.double().numpy(), aims.double().numpy()):
        w, h = x2 - x1, y2 - y1
        delta = ((u1 + u2 - x1 - x2) / 2 / w, (v1 + v2 - y1 - y2) / 2 / h, np.log((u2 - u1) / w), np.log((v2 - v1) / h))
        expected.append(np.array(delta) / stds)
    torch.testing.assert_close(deltas.double(), torch.tensor(np.array(expected)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coder.decode(start, deltas), aims, rtol=1e-4, atol=1e-3)


def test_growth_and_shrinking_are_bounded_and_boxes_clipped():
    start = torch.tensor([[10.0, 10.0, 20.0, 30.0]])
    grown = BoxCoder().decode(start, torch.tensor([[0.0, 0.0, 100.0, -100.0]]))
    assert abs(MAX_LOG_RATIO - math.log(62.5)) < 1e-12
    torch.testing.assert_close(grown, torch.tensor([[15 - 312.5, 20 - 0.16, 15 + 312.5, 20 + 0.16]]))
    clipped = BoxCoder().decode(start, torch.tensor([[0.0, 0.0, 100.0, 2.0]]), size=(40, 50))
    assert clipped.tolist() == [[0.0, 0.0, 50.0, 40.0]]
    each = BoxCoder().decode(start[:, None], torch.zeros(1, 7, 4))  # one box, deltas of seven classes
    assert torch.equal(each, start[:, None].expand(1, 7, 4))


# ---- which object ----


def assign(found, objects, positive, negative, low_quality, minimum):
    overlap = iou(objects, found).astype(np.float32)
    result = []
    for column in overlap.T:
        best = int(column.argmax())
        result.append(best if column[best] >= positive else BACKGROUND if column[best] < negative else IGNORED)
    if low_quality:
        for index, row in enumerate(overlap):
            if row.max() >= minimum:
                for at in np.flatnonzero(row == row.max()):
                    result[at] = index
    return result


@pytest.mark.parametrize("rule", [(0.7, 0.3, True, 0.3), (0.5, 0.5, True, 0.5), (0.6, 0.6, False, 0.6)])
def test_assignment_as_mmdet_reads_it(rule):
    objects, found = boxes(6, 3), boxes(80, 4)
    found = torch.cat([found, objects[:2] + 1, objects[2:4] * 1.2])
    positive, negative, low_quality, minimum = rule
    result = Assigner(positive, negative, low_quality, minimum)(found, objects).tolist()
    assert result == assign(found.numpy(), objects.numpy(), *rule)
    kinds = {min(index, 0) for index in result}
    assert kinds == ({0, BACKGROUND, IGNORED} if positive > negative else {0, BACKGROUND})


def test_an_object_takes_its_best_boxes_from_others_and_none_below_the_minimum():
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [100, 100, 110, 110], [200, 200, 210, 210]])
    found = torch.tensor([[0.0, 0, 10, 9.5], [100, 100, 110, 104], [100, 106, 110, 110], [200, 208, 210, 230]])
    # The first box overlaps object 0 most, but is also the best of object 1; boxes 1 and 2 tie for object 2.
    assert Assigner(0.7, 0.3, True, 0.3)(found, objects).tolist() == [1, 2, 2, BACKGROUND]
    assert Assigner(0.7, 0.3, False, 0.3)(found, objects).tolist() == [0, IGNORED, IGNORED, BACKGROUND]
    assert Assigner(0.7, 0.3, True, 0.05)(found, objects).tolist() == [1, 2, 2, 3]


def test_without_objects_all_is_background():
    none = torch.zeros(0, 4)
    assert Assigner(0.5, 0.5, True, 0.5)(boxes(3), none).tolist() == [BACKGROUND] * 3
    assert Assigner(0.5, 0.5, True, 0.5)(none, boxes(3)).tolist() == []


def test_sampling_keeps_the_shares():
    found = torch.tensor([BACKGROUND] * 90 + [IGNORED] * 5 + [0, 1, 2] * 10)
    torch.manual_seed(0)
    positive, negative = Sampler(40, 0.25)(found)
    assert len(positive) == 10 and len(negative) == 30
    assert (found[positive] >= 0).all() and (found[negative] == BACKGROUND).all()
    assert len(set(positive.tolist())) == 10 and len(set(negative.tolist())) == 30
    again = Sampler(40, 0.25)(found)
    assert again[0].tolist() != positive.tolist()  # at random
    positive, negative = Sampler(100, 0.5)(found)  # too few with an object: more of the others
    assert len(positive) == 30 and len(negative) == 70
    positive, negative = Sampler(16, 0.5)(torch.tensor([0] * 10 + [BACKGROUND] * 2))
    assert len(positive) == 8 and len(negative) == 2
