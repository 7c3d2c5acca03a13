"""How long COCO's average precision of boxes and masks takes, on generated objects and results.

    taskset -c 1 python benchmarks/coco_metrics.py [--images 5000] [--objects 7] [--found 10]

Images of 640 x 480 with 80 classes. Objects are polygons of 24 points around ellipses; results are most of them, moved
by a few pixels, and others that are not there, each with an RLE. Prints seconds for reading the json, for matching
(`DetectionMetrics.update`, 16 images at a time) and for the figures (`compute`): processor time of all threads, which
other programs hardly affect. Network and drawing are not in it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vssm.data import rle
from vssm.data.batches import Batch
from vssm.data.coco import CocoInstances
from vssm.tasks.detection.metrics import DetectionMetrics

WIDTH, HEIGHT, CLASSES, BATCH = 640, 480, 80, 16
TURN = np.linspace(0, 2 * np.pi, 24, endpoint=False)


def ellipse(generator):
    """Centre x, y and half axes of an object within the image; sides from 16 to about 200 pixels."""
    axes = np.exp(generator.uniform(np.log(8), np.log(100), 2))
    return np.concatenate([axes + generator.random(2) * (np.array([WIDTH, HEIGHT]) - 2 * axes), axes])


def polygon(shape):
    x, y, a, b = shape
    return np.stack([x + a * np.cos(TURN), y + b * np.sin(TURN)], 1).clip(0, (WIDTH, HEIGHT)).ravel().round(2).tolist()


def box(shape):
    x, y, a, b = shape
    return [float(x - a), float(y - b), float(2 * a), float(2 * b)]


def write(folder, images, objects, generator):
    """The json, and empty image files; the shapes and categories of the objects of each image."""
    entries, annotations, truth = [], [], []
    for image in range(images):
        name = f"{image:06d}.jpg"
        (folder / name).touch()
        entries.append({"id": image + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
        truth.append([])
        for _ in range(generator.poisson(objects)):
            shape, category = ellipse(generator), int(generator.integers(1, CLASSES + 1))
            truth[-1].append((shape, category))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image + 1, "category_id": category, "bbox": box(shape),
                "area": float(np.pi * shape[2] * shape[3]), "iscrowd": int(generator.random() < 0.01),
                "segmentation": [polygon(shape)],
            })  # fmt: skip
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    found = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(found))
    return truth


def results(truth, found, generator):
    """Rows of an image: `found` in the mean, eight of ten objects among them."""
    rows = []
    shapes = [(shape + generator.normal(0, 3, 4), category) for shape, category in truth if generator.random() < 0.8]
    more = max(0, int(generator.poisson(found)) - len(shapes))
    shapes += [(ellipse(generator), int(generator.integers(1, CLASSES + 1))) for _ in range(more)]
    for shape, category in shapes:
        shape = np.maximum(shape, [0, 0, 2, 2])
        mask = rle.of_segmentation([polygon(shape)], HEIGHT, WIDTH)
        rows.append({"category_id": category, "bbox": box(shape), "score": generator.random(), "segmentation": mask})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=float, default=7)
    parser.add_argument("--found", type=float, default=10)
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = write(folder, args.images, args.objects, generator)
        rows = [results(shapes, args.found, generator) for shapes in truth]
        for image, found in enumerate(rows, 1):
            for row in found:
                row["image_id"] = image
        clock = [time.process_time()]
        dataset = CocoInstances(folder / "truth.json", folder, lambda image, objects: (image, objects))
        metrics = DetectionMetrics(dataset)
        clock.append(time.process_time())
        for start in range(0, args.images, BATCH):
            indices = torch.arange(start, min(start + BATCH, args.images))
            metrics.update(rows[start : start + BATCH], Batch(None, [{}] * len(indices), (), indices))
        clock.append(time.process_time())
        quality = metrics.compute()
        clock.append(time.process_time())
    reading, matching, figures = np.diff(clock)
    print(f"{args.images} images, {sum(map(len, truth))} objects, {sum(map(len, rows))} results")
    print(f"box AP {quality.box.ap:.4f}, mask AP {quality.mask.ap:.4f}")
    print(f"{sum((reading, matching, figures)):.2f} s: reading {reading:.2f}, matching {matching:.2f}, ", end="")
    print(f"figures {figures:.2f}")


if __name__ == "__main__":
    main()
