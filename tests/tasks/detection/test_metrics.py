"""COCO's average precision, beside pycocotools on the same detections."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vssm.data import rle
from vssm.data.batches import Batch
from vssm.data.coco import CocoInstances
from vssm.tasks.detection.detections import Detections
from vssm.tasks.detection.metrics import NAMES, DetectionMetrics

IMAGES, SIDE = 12, 160


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Objects of three sizes in three classes, some crowds; the last image has none."""
    folder = tmp_path_factory.mktemp("coco")
    generator = np.random.default_rng(0)
    annotations = []
    for image in range(IMAGES - 1):
        for _ in range(generator.integers(1, 6)):
            w, h = generator.integers(8, 120, 2)
            x, y = generator.integers(0, SIDE - w), generator.integers(0, SIDE - h)
            mask = np.zeros((SIDE, SIDE), bool)
            mask[y : y + h, x : x + w] = True
            annotations.append({
                "id": len(annotations) + 1, "image_id": 10 + image, "category_id": int(generator.choice([2, 5, 7])),
                "bbox": [int(v) for v in (x, y, w, h)], "area": int(w * h),
                "iscrowd": int(generator.random() < 0.1), "segmentation": rle.encode(mask),
            })  # fmt: skip
    names = [f"{image}.png" for image in range(IMAGES)]
    for name in names:
        Image.new("RGB", (SIDE, SIDE)).save(folder / name)
    (folder / "truth.json").write_text(json.dumps({
        "images": [
            {"id": 10 + i, "file_name": name, "height": SIDE, "width": SIDE} for i, name in enumerate(names)
        ],
        "categories": [{"id": i, "name": name} for i, name in ((2, "two"), (5, "five"), (7, "seven"))],
        "annotations": annotations,
    }))  # fmt: skip
    return CocoInstances(folder / "truth.json", folder, lambda image, objects: objects)


def detections(dataset, index, generator):
    """The objects moved by a few pixels with a score each, and some that are not there."""
    objects = dataset.objects(index)
    boxes, labels = objects.boxes + generator.normal(0, 4, objects.boxes.shape), objects.labels.copy()
    labels[generator.random(len(labels)) < 0.2] = 0
    extra = generator.uniform(0, 70, (3, 2))
    boxes = np.concatenate([boxes, np.concatenate([extra, extra + 40], 1)])
    boxes[:, :2], boxes[:, 2:] = boxes[:, :2].clip(0, 100), np.maximum(boxes[:, 2:], boxes[:, :2] + 5)
    labels = np.concatenate([labels, generator.integers(0, 3, 3)])
    scores = np.sort(generator.random(len(labels)))[::-1].copy()
    masks = torch.from_numpy(generator.random((len(labels), 28, 28)) ** 0.1).float()
    boxes, scores = torch.from_numpy(boxes).float(), torch.from_numpy(scores).float()
    return Detections(boxes, scores, torch.from_numpy(labels), (SIDE, SIDE), masks)


def pycocotools(dataset, rows, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.index.path))
        rows = [{k: v for k, v in row.items() if k != "bbox" or kind == "bbox"} for row in rows]
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6]


def test_the_figures_of_pycocotools(dataset):
    generator = np.random.default_rng(1)
    metrics, rows = DetectionMetrics(dataset, details=4), []
    for start in range(0, IMAGES, 5):  # three batches
        indices = torch.arange(start, min(start + 5, IMAGES))
        found = [detections(dataset, int(index), generator) for index in indices]
        metrics.update(found, Batch(None, [{}] * len(indices), (), indices))
        rows += [row for image in metrics.rows for row in image]
    quality = metrics.compute()
    assert quality.images == IMAGES and quality.problem() is None
    assert sum(quality.objects) == sum(dataset.class_counts())
    assert [one.index for one in quality.examples] == [0, 3, 6, 9]
    for kind, found in (("bbox", quality.box), ("segm", quality.mask)):
        expected = pycocotools(dataset, rows, kind)
        assert expected[0] > 0.01
        assert [getattr(found, name) for name in NAMES.values()] == pytest.approx(list(expected), abs=1e-12), kind
    assert metrics.compute() == quality  # computing does not use it up
    logged = quality.logged()
    assert logged["val_box_ap50"] == quality.box.ap50 and logged["val_mask_ap_small"] == quality.mask.ap_small
    assert quality.by_class()["%box AP"] == list(quality.box.classes)


def test_boxes_alone_and_a_second_evaluation(dataset):
    metrics, generator = DetectionMetrics(dataset), np.random.default_rng(2)
    indices = torch.arange(3)
    for _ in range(2):
        metrics.reset()
        found = [detections(dataset, index, generator) for index in range(3)]
        boxes = [Detections(one.boxes, one.scores, one.labels, one.size) for one in found]
        metrics.update(boxes, Batch(None, [{}] * 3, (), indices))
        quality = metrics.compute()
        assert quality.images == 3 and quality.mask is None and "val_mask_ap" not in quality.logged()


def test_nothing_found_is_zero_and_nothing_there_is_a_problem(dataset):
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), (SIDE, SIDE))
    metrics = DetectionMetrics(dataset)
    metrics.update([nothing], Batch(None, [{}], (), torch.tensor([0])))
    assert metrics.compute().box.ap == 0.0
    metrics.reset()
    assert metrics.compute().problem() == "nothing to evaluate"
    metrics.update([nothing], Batch(None, [{}], (), torch.tensor([IMAGES - 1])))
    quality = metrics.compute()
    assert math.isnan(quality.box.ap) and "no annotated object" in str(quality.problem())
