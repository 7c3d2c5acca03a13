"""Detection as a task: boxes, and masks where the network and the data have them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import torch
from PIL import Image
from torch import nn

from vssm.data.batches import Collate
from vssm.data.keep_ratio import KeepRatio
from vssm.data.padded import PaddedImages
from vssm.data.preprocess import Preparation
from vssm.data.splits import Splits, Transform
from vssm.settings import DataSettings, ModelSettings, Settings
from vssm.tasks.classification.model import check_image_size, check_model_name
from vssm.tasks.detection.detections import Detections
from vssm.tasks.detection.drawing import Shape, draw_objects
from vssm.tasks.detection.learner import Detection
from vssm.tasks.detection.networks import NETWORKS, create_detector, learns_masks
from vssm.tasks.detection.transforms import DetectionTransform, EvaluationTransform
from vssm.tasks.initial import load_initial
from vssm.tasks.networks import TRIED, chosen_network
from vssm.tasks.task import Example, ResultsWriter

if TYPE_CHECKING:
    from vssm.tasks.detection.metrics import DetectionMetrics, DetectionQuality

SHORT_SIDE, LONG_SIDE = 800, 1333
DRAWN = 0.5  # least score of an object that is drawn


def write_results(stream: TextIO, images: Iterable[list[dict[str, Any]]]) -> None:
    """COCO's json of results: a list of {image_id, category_id, bbox, score, segmentation}."""
    stream.write("[")
    for number, row in enumerate(row for rows in images for row in rows):
        stream.write((",\n" if number else "") + json.dumps(row))
    stream.write("]\n")


def stack_images(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, list[Any]]:
    """((image, (H, W)), target) of each -> PaddedImages and the targets."""
    if not pairs:
        return torch.empty(0), []
    images, originals = zip(*(image for image, _ in pairs), strict=True)
    return PaddedImages.of(images, originals), [target for _, target in pairs]


@dataclass(frozen=True)
class DetectionTask:
    """Images with the objects of a COCO json."""

    name: str = "detection"
    monitor: str = "val_box_ap"
    columns: tuple[str, ...] = ("val_box_ap", "val_box_ap50", "val_box_ap75", "val_mask_ap", "val_mask_ap50")
    counted: str = "objects"
    headings: Mapping[str, str] = field(
        default_factory=lambda: {
            f"val_{kind}_{key}": f"%{kind} {text}"
            for kind in ("box", "mask")
            for key, text in {
                "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl",
            }.items()
        }
    )  # fmt: skip
    collate: Collate = Collate(stack_images)  # noqa: RUF009 (one for all)

    def create_model(self, settings: ModelSettings, classes: int, channels: int, pretrained: bool = False) -> nn.Module:
        return create_detector(settings, classes, pretrained)

    def check_model(
        self, model: nn.Module, name: str, input_size: tuple[int, int, int], classes: int | None = None
    ) -> None:
        """One forward of a small image: the network takes others too."""
        check_image_size(model, name, (input_size[0], *TRIED))

    def load_initial(self, model: nn.Module, file: Path | None, head: str) -> tuple[str, ...]:
        return load_initial(model, file, head)

    def preprocess(self, settings: DataSettings, model_name: str) -> KeepRatio:
        check_model_name(model_name)
        short = settings.image_size or SHORT_SIDE
        return KeepRatio(short, settings.max_side or round(short * LONG_SIDE / SHORT_SIDE))

    def train_transform(self, settings: Settings, preprocess: Preparation) -> Transform:
        assert isinstance(preprocess, KeepRatio)
        data, masks = settings.data, learns_masks(settings.model)
        if not data.augment:
            return DetectionTransform(preprocess, masks=masks)
        return DetectionTransform(preprocess, tuple(data.train_sides), data.hflip, data.random_crop, masks)

    def load_splits(
        self,
        settings: DataSettings,
        preprocess: Preparation,
        train_transform: Transform | None = None,
        classes: tuple[str, ...] | None = None,
        split: str = "val",
    ) -> Splits:
        assert isinstance(preprocess, KeepRatio)
        from vssm.tasks.detection.splits import load_objects

        return load_objects(
            settings,
            preprocess,
            train_transform or DetectionTransform(preprocess),
            EvaluationTransform(preprocess),
            classes,
            split,
        )

    def learner(self, model: nn.Module, settings: Settings, splits: Splits) -> Detection:
        from vssm.data.coco import CocoInstances

        train = splits.train
        if isinstance(train, CocoInstances) and learns_masks(settings.model) and not train.has_masks:
            name, _ = chosen_network(NETWORKS, settings.model)
            raise ValueError(
                f"{train.index.path}: not every object has a segmentation, and {name} learns masks; train boxes "
                "alone with --model.network_args.masks false"
            )
        return Detection(model)

    def inference(self, model: nn.Module, data: DataSettings | None = None) -> Callable[[Any], Any]:
        return model

    def metrics(self, splits: Splits, details: int = 0) -> "DetectionMetrics":
        from vssm.data.coco import CocoInstances
        from vssm.tasks.detection.metrics import DetectionMetrics

        assert isinstance(splits.val, CocoInstances)
        return DetectionMetrics(splits.val, details)

    def results(self, outputs: Sequence[Detections], classes: Sequence[str], top_k: int) -> list[Detections | None]:
        return [one.to("cpu") if bool(one.boxes.isfinite().all()) else None for one in outputs]

    def results_writer(self, classes: Sequence[str]) -> ResultsWriter:
        return write_results

    def summary(self, result: Detections, classes: Sequence[str]) -> str:
        """Objects of `DRAWN` or more, counted by class, the most certain first."""
        shown = result[result.scores >= DRAWN]
        counts = Counter(classes[label] for label in shown.labels.tolist())
        named = ", ".join(f"{count} {name}" for name, count in counts.items())
        return named or f"nothing of {DRAWN:.0%} or more ({len(result)} below)"

    def plain(self, result: Detections, classes: Sequence[str]) -> dict[str, Any]:
        """objects: name, score, box (x, y, width, height in pixels) and segmentation (COCO's RLE) of each."""
        masks = [None] * len(result) if result.masks is None else result.rle()
        objects: list[dict[str, Any]] = []
        rows = zip(result.labels.tolist(), result.scores.tolist(), result.boxes.tolist(), masks, strict=True)
        for label, score, (x1, y1, x2, y2), mask in rows:
            found = {"name": classes[label], "score": score, "box": [x1, y1, x2 - x1, y2 - y1]}
            objects.append(found if mask is None else found | {"segmentation": mask})
        return {"height": result.size[0], "width": result.size[1], "objects": objects}

    def examples(self, quality: "DetectionQuality", splits: Splits, classes: Sequence[str]) -> list[Example]:
        from vssm.data.coco import CocoInstances

        dataset, examples = splits.val, list[Example]()
        assert isinstance(dataset, CocoInstances)
        for one in quality.examples:
            image, objects = dataset.read(one.index)
            true: list[Shape] = [
                (box, classes[int(label)], int(label), None if segmentation is None else objects.mask(row))
                for row, (box, label, segmentation) in enumerate(
                    zip(objects.boxes.tolist(), objects.labels.tolist(), objects.segmentations, strict=True)
                )
            ]
            drawn = self.draw(image, one.found, classes)
            examples.append(Example(dataset.names[one.index], drawn, draw_objects(image, true)))
        return examples

    def draw(self, image: Image.Image, result: Detections, classes: Sequence[str]) -> Image.Image:
        """The objects of `DRAWN` or more."""
        shown = result[result.scores >= DRAWN]
        masks = [None] * len(shown) if shown.masks is None else (mask.numpy() for mask in shown.pasted())
        rows = zip(shown.boxes.tolist(), shown.labels.tolist(), shown.scores.tolist(), masks)
        return draw_objects(
            image, ((box, f"{classes[label]} {score:.0%}", label, cast(Any, mask)) for box, label, score, mask in rows)
        )
