"""Proposals and losses of the region proposal network, beside a plain reading of mmdet's rules."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tasks.detection.test_boxes import assign, iou
from vssm.data.padded import PaddedImages
from vssm.tasks.detection.assign import Assigner, Sampler
from vssm.tasks.detection.rpn import RPN, RPNConfig

STRIDES = (4, 8, 16, 32, 64)


def rpn(**options):
    torch.manual_seed(0)
    network = RPN(6, STRIDES, RPNConfig(**options))
    for p in network.parameters():
        p.data.normal_(std=0.3)
    return network


def maps(batch=2, height=64, width=96):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 6, -(-height // s), -(-width // s), generator=generator) for s in STRIDES]


def images():
    return PaddedImages(torch.zeros(2, 3, 64, 96), ((64, 90), (50, 61)), ((64, 90), (50, 61)))


def outputs(network, x):
    """Scores (n,) and deltas (n, 4) of each level and image, read from the head's maps cell by cell."""
    scores, deltas = network.head(x)
    found = []
    for s, d in zip(scores, deltas):
        for i in range(len(s)):
            rows = [(s[i, a, r, c], d[i, 4 * a : 4 * a + 4, r, c])
                    for r in range(s.shape[2]) for c in range(s.shape[3]) for a in range(3)]  # fmt: skip
            found.append((torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])))
    return [found[i::2] for i in range(2)]


def nms(boxes, scores, threshold):
    order, kept = list(np.argsort(-scores, kind="stable")), []
    overlap = iou(boxes, boxes)
    while order:
        best = order.pop(0)
        kept.append(best)
        order = [at for at in order if overlap[best, at] <= threshold]
    return kept


@pytest.mark.parametrize("training", [True, False])
def test_proposals(training):
    network = rpn(before_nms=(40, 25), kept=(40, 20)).train(training)
    x = maps()
    with torch.no_grad():
        found, _ = network(x, images())
        values = outputs(network, x)
    before, kept = (40, 40) if training else (25, 20)
    anchors = network.anchors(x)
    for i, (h, w) in enumerate(images().sizes):
        rows = []
        for level, (scores, deltas) in enumerate(values[i]):
            for at in np.argsort(-scores.numpy(), kind="stable")[:before]:
                x1, y1, x2, y2 = anchors[level][at].tolist()
                dx, dy, *grown = deltas[at].tolist()
                dw, dh = np.clip(grown, -np.log(62.5), np.log(62.5))
                cx, cy = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
                bw, bh = (x2 - x1) * np.exp(dw), (y2 - y1) * np.exp(dh)
                corners = np.array([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2])
                corners = np.clip(corners, 0, [w, h, w, h])
                if corners[2] > corners[0] and corners[3] > corners[1]:
                    rows.append((scores[at].item(), level, corners))
        chosen = []
        for level in range(5):
            own = [row for row in rows if row[1] == level]
            chosen += [own[at] for at in nms([r[2] for r in own], np.array([r[0] for r in own]), 0.7)]
        chosen.sort(key=lambda row: -row[0])
        expected = torch.tensor(np.array([row[2] for row in chosen[:kept]]), dtype=torch.float32)
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-3)
        assert len(found[i]) == kept and not found[i].requires_grad


def test_small_proposals_stay():
    network = rpn().eval()
    for p in network.head.bbox_pred.parameters():
        p.data.zero_()
    network.head.bbox_pred.bias.data.view(3, 4)[:, 2:] = -100.0  # to 1 / 62.5 of the anchors: half a pixel
    found, _ = network(maps(), images())
    sides = found[0][:, 2:] - found[0][:, :2]
    assert (sides > 0).all() and sides.min() < 0.4 and len(found[0]) > 100
    network.head.bbox_pred.bias.data.view(3, 4)[:, 0] = -1e4  # all of them beyond the left edge
    assert len(network(maps(), images())[0][0]) == 0


@pytest.mark.parametrize(("border", "beta"), [(-1, 0.0), (0, 1 / 9)])
def test_losses(border, beta):
    """With all anchors sampled; the second image has no objects."""
    sampler, rule = Sampler(10**6, 0.5), (0.5, 0.3, True, 0.2)
    network = rpn(sampler=sampler, assigner=Assigner(*rule), border=border, beta=beta).train()
    x = maps()
    objects = torch.tensor([[10.0, 12, 40, 50], [50, 5, 60, 30], [3, 3, 80, 60]])
    targets = [{"boxes": objects}, {"boxes": torch.zeros(0, 4)}]
    _, losses = network(x, images(), targets)
    values = outputs(network, x)
    levels = network.anchors(x)
    anchors = torch.cat(levels)
    count, cls, box = 0, 0.0, 0.0
    for i, target in enumerate(targets):
        scores = torch.cat([level[0] for level in values[i]])
        deltas = torch.cat([level[1] for level in values[i]])
        usable = network.anchors.usable(x, levels, images().sizes[i], 32, border)
        at = torch.where(usable)[0]
        own = target["boxes"].numpy()
        found = assign(anchors[at].numpy(), own, *rule) if len(own) else [-1] * len(at)
        positive = negative = 0
        for index, which in zip(at.tolist(), found):
            if which == -2:
                continue
            cls = cls + F.softplus(-scores[index] if which >= 0 else scores[index])
            if which < 0:
                negative += 1
                continue
            positive += 1
            x1, y1, x2, y2 = anchors[index].tolist()
            u1, v1, u2, v2 = own[which].tolist()
            w, h = x2 - x1, y2 - y1
            aim = [(u1 + u2 - x1 - x2) / 2 / w, (v1 + v2 - y1 - y2) / 2 / h]
            aim = torch.tensor([*aim, np.log((u2 - u1) / w), np.log((v2 - v1) / h)], dtype=torch.float32)
            off = (deltas[index] - aim).abs()
            box = box + torch.where(off < beta, off**2 / (2 * beta) if beta else off, off - beta / 2).sum()
        assert negative > 0 and (positive > 3) == (i == 0)
        count += max(positive, 1) + negative
    torch.testing.assert_close(losses["rpn_cls"], cls / count, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["rpn_box"], box / count, rtol=1e-4, atol=1e-5)


def test_an_image_too_small_for_any_anchor_trains_nothing():
    small = PaddedImages(torch.zeros(2, 3, 64, 96), ((3, 3), (3, 3)), ((3, 3), (3, 3)))
    targets = [{"boxes": torch.tensor([[0.0, 0, 2, 2]])}] * 2
    network = rpn(border=0).train()
    _, losses = network(maps(), small, targets)
    assert losses["rpn_cls"] == 0 and losses["rpn_box"] == 0
    sum(losses.values()).backward()
