"""Samples, losses and results of the heads on regions, beside a plain reading of mmdet's rules."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.tasks.detection.test_boxes import boxes, iou
from tests.tasks.detection.test_rpn import nms
from vssm.data.padded import PaddedImages
from vssm.tasks.detection.assign import Sampler
from vssm.tasks.detection.box_head import BoxHead, SyncedBatchNorm, four_conv_one_fc, two_fc
from vssm.tasks.detection.mask_head import MaskHead
from vssm.tasks.detection.masks import mask_targets
from vssm.tasks.detection.roi_heads import RoIHeads, Stage, StageConfig

K, C = 3, 5


def stage(box_trunk=two_fc, masks=True, **options):
    box = BoxHead(box_trunk(C, 8), 8, K)
    found = Stage(StageConfig(**options), box, MaskHead(C, 6, K) if masks else None)
    for p in found.parameters():
        p.data.normal_(std=0.2)
    return found


def maps(batch=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, C, 16 // 2**i, 24 // 2**i, generator=generator) for i in range(4)]


IMAGES = PaddedImages(torch.zeros(2, 3, 64, 96), ((64, 90), (50, 61)), ((128, 180), (25, 61)))


def targets():
    rng = np.random.default_rng(5)
    made = []
    for (h, w), count in zip(IMAGES.sizes, (3, 2)):
        own = boxes(count, seed=count, side=45.0)
        masks = torch.from_numpy(rng.uniform(size=(count, h, w)) > 0.4)
        made.append({"boxes": own, "labels": torch.arange(count) % K, "masks": masks})
    return made


# ---- training ----


def test_own_boxes_come_first_and_find_themselves():
    torch.manual_seed(0)
    target, found = targets()[0], boxes(40, 9)
    sample = stage(iou=0.3, sampler=Sampler(20, 0.5)).sample(found, target)
    assert len(sample.boxes) == 20 and 3 <= len(sample.objects) <= 10
    own = [index for index, mine in enumerate(sample.own.tolist()) if mine]
    for index in own:
        assert torch.equal(sample.boxes[index], target["boxes"][sample.objects[index]])
    assert own and max(own) < len(sample.objects)
    overlap = iou(sample.boxes.numpy(), target["boxes"].numpy())
    assert (overlap[len(sample.objects) :].max(axis=1) < 0.3).all()
    assert (overlap[np.arange(len(sample.objects)), sample.objects] >= 0.3).all()


@pytest.mark.parametrize("kind", ["l1", "giou"])
def test_box_losses_by_hand(kind):
    torch.manual_seed(0)
    found, aims = boxes(6, 1), boxes(2, 2)
    labels = torch.tensor([2, 0, K, K, K, K])
    scores, deltas = torch.randn(6, K + 1), 0.5 * torch.randn(6, K, 4)
    weight = 10.0 if kind == "giou" else 1.0
    cls, box = stage(box_loss=kind, box_weight=weight).box_losses(scores, deltas, found, labels, aims)
    expected = -np.mean([scores[i].softmax(0)[label].log().item() for i, label in enumerate(labels)])
    assert cls.item() == pytest.approx(expected, rel=1e-5)
    total = 0.0
    for i in range(2):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = found[i].tolist(), aims[i].tolist()
        w, h, delta = x2 - x1, y2 - y1, deltas[i, labels[i]].tolist()
        if kind == "l1":
            aim = ((u1 + u2 - x1 - x2) / 2 / w / 0.1, (v1 + v2 - y1 - y2) / 2 / h / 0.1)
            aim += (math.log((u2 - u1) / w) / 0.2, math.log((v2 - v1) / h) / 0.2)
            total += sum(abs(a - b) for a, b in zip(delta, aim))
        else:
            cx, cy = (x1 + x2) / 2 + 0.1 * delta[0] * w, (y1 + y2) / 2 + 0.1 * delta[1] * h
            bw, bh = w * math.exp(0.2 * delta[2]), h * math.exp(0.2 * delta[3])
            a = (cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2)
            inter = max(min(a[2], u2) - max(a[0], u1), 0) * max(min(a[3], v2) - max(a[1], v1), 0)
            union = bw * bh + (u2 - u1) * (v2 - v1) - inter
            around = (max(a[2], u2) - min(a[0], u1)) * (max(a[3], v2) - min(a[1], v1))
            total += 10 * (1 - inter / union + (around - union) / around)
    assert box.item() == pytest.approx(total / 6, rel=1e-4)  # over all six samples


def test_losses_of_one_stage_and_of_three():
    torch.manual_seed(0)
    proposals = [boxes(60, 20, side=50.0), boxes(60, 21, side=45.0)]
    options = {"sampler": Sampler(10**6, 1.0), "iou": 0.2}  # all boxes: nothing is random
    one = RoIHeads([stage(**options)], (4, 8, 16, 32))
    losses = one.losses(maps(), proposals, IMAGES, targets())
    assert sorted(losses) == ["box", "cls", "mask"]
    first = one.stages[0]
    samples = [first.sample(found, target) for found, target in zip(proposals, targets())]
    logits = first.mask(one.mask_features(maps(), [s.boxes[: len(s.objects)] for s in samples]))
    total, at = 0.0, 0
    for sample, target in zip(samples, targets()):
        wanted = mask_targets(target["masks"], sample.boxes[: len(sample.objects)], sample.objects, (64, 96))
        for index, aim in zip(sample.objects, wanted):
            z = logits[at, target["labels"][index]]
            total, at = total + (z.clamp(min=0) - z * aim + (-z.abs()).exp().log1p()).sum().item(), at + 1
    assert losses["mask"].item() == pytest.approx(total / (at * 28 * 28), rel=1e-4)
    # The same stage three times, with weights: the first gives the losses above.
    stages = [first, stage(weight=0.5, **options), stage(weight=0.25, **options)]
    stages[1].load_state_dict(first.state_dict())
    cascade = RoIHeads(stages, (4, 8, 16, 32))
    found = cascade.losses(maps(), proposals, IMAGES, targets())
    assert sorted(found) == sorted(f"{name}_{index}" for name in ("box", "cls", "mask") for index in (1, 2, 3))
    for name, loss in losses.items():
        torch.testing.assert_close(found[f"{name}_1"], loss)
    # The second trains on the first's boxes of the samples' classes, or of the best class, without the own boxes.
    scores, deltas = first.box(one.box_features(maps(), [s.boxes for s in samples]))
    better, at = [], 0
    for sample, target, size in zip(samples, targets(), IMAGES.sizes):
        rows = []
        for index in range(len(sample.boxes)):
            label = target["labels"][sample.objects[index]] if index < len(sample.objects) else scores[at, :K].argmax()
            moved = first.coder.decode(sample.boxes[index], deltas[at, label], size)
            at += 1
            if not sample.own[index]:
                rows.append(moved)
        better.append(torch.stack(rows).detach())
    second = RoIHeads([first], (4, 8, 16, 32)).losses(maps(), better, IMAGES, targets())
    for name, loss in second.items():
        torch.testing.assert_close(found[f"{name}_2"], 0.5 * loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trunk", [two_fc, four_conv_one_fc])
def test_without_objects_or_proposals(trunk):
    heads = RoIHeads([stage(trunk), stage(trunk)], (4, 8, 16, 32)).train()
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": torch.zeros(0, h, w) > 0}
             for h, w in IMAGES.sizes]  # fmt: skip
    losses = heads.losses(maps(), [boxes(5), boxes(4)], IMAGES, empty)
    assert losses["box_1"] == 0 and losses["mask_1"] == 0 and losses["cls_1"] > 0
    sum(losses.values()).backward()
    nothing = heads.losses(maps(), [torch.zeros(0, 4)] * 2, IMAGES, empty)
    assert all(loss == 0 for loss in nothing.values())
    found = heads.eval().detect(maps(), [torch.zeros(0, 4), boxes(4)], IMAGES)
    assert len(found[0]) == 0 and found[0].masks.shape == (0, 28, 28)


# ---- evaluation ----


@pytest.mark.parametrize("stages", [1, 3])
def test_results(stages):
    torch.manual_seed(1)
    heads = RoIHeads([stage() for _ in range(stages)], (4, 8, 16, 32), score=0.2, nms=0.4, kept=12).eval()
    proposals = [boxes(30, 20, side=50.0), boxes(20, 21, side=45.0)]
    with torch.no_grad():
        found = heads.detect(maps(), proposals, IMAGES)
        for i, (size, original) in enumerate(zip(IMAGES.sizes, IMAGES.originals)):
            own, total = [m[i : i + 1] for m in maps()], 0
            current = proposals[i]
            for part in heads.stages:
                scores, deltas = part.box(heads.box_features(own, [current]))
                total = total + scores
                if part is not heads.stages[-1]:
                    best = scores[:, :K].argmax(1)
                    rows = [part.coder.decode(b, d[k], size) for b, d, k in zip(current, deltas, best)]
                    current = torch.stack(rows)
            shares = (total / stages).softmax(1)  # the mean of the scores, not of the shares
            rows = []
            for k in range(K):
                at = torch.where(shares[:, k] > 0.2)[0]
                moved = torch.stack([part.coder.decode(current[j], deltas[j, k], size) for j in at])
                rows += [(shares[at[j], k].item(), k, moved[j]) for j in nms(moved.numpy(), shares[at, k].numpy(), 0.4)]
            rows = sorted(rows, key=lambda row: -row[0])[:12]
            assert len(found[i]) == len(rows) == 12
            assert found[i].labels.tolist() == [row[1] for row in rows] and len(set(found[i].labels.tolist())) > 1
            torch.testing.assert_close(found[i].scores, torch.tensor([row[0] for row in rows]))
            inside = torch.stack([row[2] for row in rows])
            scale = torch.tensor([original[1] / size[1], original[0] / size[0]] * 2)
            torch.testing.assert_close(found[i].boxes, inside * scale)
            features = heads.mask_features(own, [inside])
            expected = [
                sum(p.mask(features)[j, row[1]].sigmoid() for p in heads.stages) / stages for j, row in enumerate(rows)
            ]
            torch.testing.assert_close(found[i].masks, torch.stack(expected), rtol=1e-4, atol=1e-5)
            assert found[i].size == original


def test_boxes_alone():
    heads = RoIHeads([stage(masks=False)], (4, 8, 16, 32), score=0.0)
    assert heads.eval().detect(maps(), [boxes(3), boxes(2)], IMAGES)[0].masks is None
    assert sorted(heads.train().losses(maps(), [boxes(3), boxes(2)], IMAGES, targets())) == ["box", "cls"]


# ---- heads ----


def test_box_head_of_two_layers_by_hand():
    torch.manual_seed(0)
    head = BoxHead(two_fc(2, 4), 4, K)
    x = torch.randn(3, 2, 7, 7)
    scores, deltas = head(x)
    w = [p.detach().double().numpy() for p in head.parameters()]
    y = np.maximum(x.double().numpy().reshape(3, 98) @ w[0].T + w[1], 0)
    y = np.maximum(y @ w[2].T + w[3], 0)
    np.testing.assert_allclose(scores.detach(), y @ w[4].T + w[5], rtol=1e-4, atol=1e-5)
    expected = (y @ w[6].T + w[7]).reshape(3, K, 4)
    np.testing.assert_allclose(deltas.detach(), expected, rtol=1e-4, atol=1e-6)
    assert scores.shape == (3, K + 1)


def test_batch_norm_is_synced_on_gpus_only():
    assert any(isinstance(m, SyncedBatchNorm) for m in four_conv_one_fc(2, 4).modules())
    torch.manual_seed(0)
    norm, plain = SyncedBatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    for _ in range(2):
        torch.testing.assert_close(norm(x), plain(x))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    torch.testing.assert_close(norm.eval()(x), plain.eval()(x))


def test_what_is_refused():
    with pytest.raises(ValueError, match="unknown box_loss 'smooth_l1'"):
        stage(box_loss="smooth_l1")
