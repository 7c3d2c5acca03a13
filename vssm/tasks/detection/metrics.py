"""How good a detector is: COCO's average precision of boxes and masks, matched image by image."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vssm.data.batches import Batch
from vssm.data.coco import CocoInstances
from vssm.tasks.detection.detections import Detections

# COCO's names of what is printed, and ours in logs: of 100 detections per image.
NAMES = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large"}


@dataclass(frozen=True)
class Precision:
    """COCO's average precision in 0..1; NaN where no annotated object is of that size.

    ap: mean over IoU thresholds 0.50 to 0.95 in steps of 0.05 and over classes; ap50, ap75: at one threshold.
    ap_small, ap_medium, ap_large: of objects of less than 32 x 32 pixels, of up to 96 x 96, of more.
    classes: `ap` of each class, NaN for one without objects.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    classes: tuple[float, ...]


@dataclass(frozen=True)
class Found:
    """What was found in image `index` of the split."""

    index: int
    found: Detections


@dataclass(frozen=True)
class DetectionQuality:
    """objects: annotated ones of each class, without crowds, in the images evaluated; masks: None for boxes alone."""

    images: int
    box: Precision
    mask: Precision | None
    objects: tuple[int, ...]
    examples: tuple[Found, ...] = field(default=())

    def logged(self) -> dict[str, float]:
        found = {f"val_box_{name}": getattr(self.box, name) for name in NAMES.values()}
        if self.mask is not None:
            found |= {f"val_mask_{name}": getattr(self.mask, name) for name in NAMES.values()}
        return found | {"val_images": float(self.images)}

    def by_class(self) -> dict[str, list[float]]:
        found = {"objects": [float(count) for count in self.objects], "%box AP": list(self.box.classes)}
        return found if self.mask is None else found | {"%mask AP": list(self.mask.classes)}

    def problem(self) -> str | None:
        if self.images == 0:
            return "nothing to evaluate"
        return None if sum(self.objects) else "no annotated object in any of them; an average precision needs some"


class DetectionMetrics(nn.Module):
    """Compares `Detections` with the annotations of a data set, named by `Batch.indices`.

    Each batch is matched at once, by hotcoco; what is kept of an image is a few bytes per object and detection, no
    mask. Several processes are merged. Masks are compared where the network gives them and every object has one.
    With `details`, detections of so many images, evenly spread over the data set, are kept as examples.

    rows: the results of each image of the latest batch, as COCO's json lists them. An output may be such rows too.
    """

    def __init__(self, dataset: CocoInstances, details: int = 0):
        super().__init__()
        self.dataset = dataset
        self.categories = dataset.categories()
        self.kinds = ("bbox", "segm") if dataset.has_masks else ("bbox",)
        step = max(1, len(dataset) // details) if details else 0
        self.kept = set(range(0, len(dataset), step)[:details]) if details else set[int]()
        self.rows: list[list[dict[str, Any]]] = []
        self.reset()

    def reset(self) -> None:
        from hotcoco import StreamingEval

        self.streams = {kind: StreamingEval(self.categories, iou_type=kind) for kind in self.kinds}
        self.images, self.without_masks = 0, False
        self.objects = [0] * len(self.categories)
        self.examples: list[Found] = []

    def update(self, outputs: Sequence[Detections | list[dict[str, Any]]], batch: Batch) -> None:
        self.rows = []
        for index, found in zip(batch.indices.tolist(), outputs, strict=True):
            entry, truth = self.dataset.image_entry(index), self.dataset.annotations(index)
            if isinstance(found, Detections):
                found = found.to("cpu")
                results = self._rows(entry["id"], found)
                self.without_masks |= found.masks is None
                if index in self.kept:
                    self.examples.append(Found(index, found))
            else:
                results = found
                self.without_masks |= any("segmentation" not in row for row in results)
            self.rows.append(results)
            for kind, stream in self.streams.items():
                if kind == "bbox":
                    # Without its mask, or the area of the mask would decide what is small.
                    stream.update([entry], truth, [_without(row, "segmentation") for row in results])
                elif not self.without_masks:
                    stream.update([entry], truth, [_without(row, "bbox") for row in results])
            self.images += 1
            objects = self.dataset.objects(index)
            for label in objects.labels[~objects.crowd].tolist():
                self.objects[label] += 1

    def compute(self) -> DetectionQuality:
        images, objects, streams, without_masks = self._gathered()
        found = {
            kind: self._precision(stream)
            for kind, stream in streams.items()
            if images and not (kind == "segm" and without_masks)
        }
        nan = Precision(**dict.fromkeys(NAMES.values(), math.nan), classes=(math.nan,) * len(self.categories))
        return DetectionQuality(images, found.get("bbox", nan), found.get("segm"), tuple(objects), tuple(self.examples))

    def _rows(self, image_id: int, found: Detections) -> list[dict[str, Any]]:
        masks = [None] * len(found) if found.masks is None else found.rle()
        corners, sizes = found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]
        rows: list[dict[str, Any]] = []
        values = zip(torch.cat([corners, sizes], 1).tolist(), found.scores.tolist(), found.labels.tolist(), masks)
        for box, score, label, mask in values:
            row = {"image_id": image_id, "category_id": self.dataset.category_id(label), "bbox": box, "score": score}
            rows.append(row if mask is None else row | {"segmentation": mask})
        return rows

    def _gathered(self) -> tuple[int, list[int], Mapping[str, Any], bool]:
        """Of all processes."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.images, self.objects, self._copies(), self.without_masks
        from hotcoco import StreamingEval

        own = {kind: stream.to_bytes() for kind, stream in self.streams.items()}
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, (self.images, self.objects, own, self.without_masks))
        merged = {
            kind: StreamingEval.merge([StreamingEval.from_bytes(states[kind]) for _, _, states, _ in gathered])
            for kind in self.kinds
        }
        objects = [sum(counts) for counts in zip(*(counts for _, counts, _, _ in gathered), strict=True)]
        return sum(images for images, *_ in gathered), objects, merged, any(without for *_, without in gathered)

    def _copies(self) -> Mapping[str, Any]:
        """Computing consumes an evaluator."""
        from hotcoco import StreamingEval

        return {kind: StreamingEval.from_bytes(stream.to_bytes()) for kind, stream in self.streams.items()}

    def _precision(self, stream: Any) -> Precision:
        evaluation = stream.finalize()
        evaluation.accumulate()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it finds
            evaluation.summarize()
        found = evaluation.get_results(per_class=True)
        known = {name: float(found[theirs]) for theirs, name in NAMES.items()}
        classes = [float(found.get(f"AP/{category['name']}", -1)) for category in self.categories]
        return Precision(**{name: _known(value) for name, value in known.items()}, classes=tuple(map(_known, classes)))


def _known(value: float) -> float:
    """COCO writes -1 where there is nothing to find."""
    return math.nan if value < 0 else value


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}
