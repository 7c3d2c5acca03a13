"""Semantic segmentation as a task: a class for every pixel."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image
from torch import nn

from vssm.data.batches import Collate
from vssm.data.keep_ratio import KeepRatio
from vssm.data.masks import SemanticMasks
from vssm.data.preprocess import Preparation
from vssm.data.splits import Splits, Transform
from vssm.settings import DataSettings, ModelSettings, Settings
from vssm.tasks.classification.model import check_image_size, check_model_name
from vssm.tasks.initial import load_initial
from vssm.tasks.networks import TRIED, Factory, backbone_arguments, check_arguments, chosen_network
from vssm.tasks.segmentation.drawing import draw_labels, shares
from vssm.tasks.segmentation.inference import Inference, LabelMap
from vssm.tasks.segmentation.learner import Segmentation
from vssm.tasks.segmentation.network import upernet
from vssm.tasks.segmentation.splits import load_masks
from vssm.tasks.segmentation.transforms import CropTransform, WholeTransform, stack
from vssm.tasks.task import Example, ResultsWriter

if TYPE_CHECKING:
    from vssm.tasks.segmentation.metrics import SegmentationMetrics, SegmentationQuality

NETWORKS: dict[str, Factory] = {"upernet": upernet}
WIDTHS = ("channels", "aux_channels", "drop_rate")  # what settings may name
SHORT_SIDE, LONG_SIDE = 512, 2048
NAMED = 5  # classes of a summary


def write_confusion(classes: Sequence[str], stream: TextIO, images: Iterable[dict[str, Any]]) -> None:
    """{images, not_finite, classes, confusion}: pixels (K, K + 1) of all images, true class by predicted class; the
    last column has those of images for which the network gave NaN or infinity."""
    confusion = np.zeros((len(classes), len(classes) + 1), np.int64)
    done = not_finite = 0
    for image in images:
        done, not_finite = done + 1, not_finite + (not image["finite"])
        for true, found, pixels in image["confusion"]:
            confusion[true, found] += pixels
    json.dump(
        {"images": done, "not_finite": not_finite, "classes": list(classes), "confusion": confusion.tolist()}, stream
    )
    stream.write("\n")


@dataclass(frozen=True)
class SegmentationTask:
    """Images with a mask of each: ADE20K, Cityscapes, Pascal VOC, or folders of images and masks."""

    name: str = "segmentation"
    monitor: str = "val_miou"
    columns: tuple[str, ...] = ("val_miou", "val_aacc", "val_macc")
    counted: str = "pixels"
    headings: Mapping[str, str] = field(
        default_factory=lambda: {"val_miou": "%mIoU", "val_aacc": "%aAcc", "val_macc": "%mAcc"}
    )
    collate: Collate = field(default_factory=lambda: Collate(stack))

    def create_model(self, settings: ModelSettings, classes: int, channels: int, pretrained: bool = False) -> nn.Module:
        name, factory = chosen_network(NETWORKS, settings)
        check_arguments(name, settings, WIDTHS)
        backbone_args = {"in_chans": channels, **backbone_arguments(settings)}
        return factory(
            settings.name, classes, pretrained=pretrained, backbone_args=backbone_args, **settings.network_args
        )

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
        return KeepRatio(short, settings.max_side or round(short * LONG_SIDE / SHORT_SIDE), multiple=1)

    def train_transform(self, settings: Settings, preprocess: Preparation) -> Transform:
        assert isinstance(preprocess, KeepRatio)
        return CropTransform.of(preprocess, settings.data)  # type: ignore[return-value] (of an image and its labels)

    def load_splits(
        self,
        settings: DataSettings,
        preprocess: Preparation,
        train_transform: Transform | None = None,
        classes: tuple[str, ...] | None = None,
        split: str = "val",
    ) -> Splits:
        assert isinstance(preprocess, KeepRatio)
        evaluated = WholeTransform(preprocess)
        chosen = train_transform if isinstance(train_transform, CropTransform) else evaluated
        return load_masks(settings, preprocess, chosen, evaluated, classes, split)

    def learner(self, model: nn.Module, settings: Settings, splits: Splits) -> Segmentation:
        return Segmentation(model, settings.optim.label_smoothing)

    def inference(self, model: nn.Module, data: DataSettings | None = None) -> Inference:
        if data is None:
            return Inference(model)
        return Inference(model, data.test_scales, data.test_flip, data.test_window, data.test_stride)

    def metrics(self, splits: Splits, details: int = 0) -> "SegmentationMetrics":
        from vssm.tasks.segmentation.metrics import SegmentationMetrics  # torchmetrics is an extra

        return SegmentationMetrics.of(splits, details)

    def results(self, outputs: Sequence[LabelMap], classes: Sequence[str], top_k: int) -> list[LabelMap | None]:
        """The label map of each image, on the CPU; None for NaN or infinity."""
        return [LabelMap(one.labels.cpu()) if one.finite else None for one in outputs]

    def results_writer(self, classes: Sequence[str]) -> ResultsWriter:
        return partial(write_confusion, classes)

    def summary(self, result: LabelMap, classes: Sequence[str]) -> str:
        """The classes with the most pixels."""
        found = shares(result.labels.numpy())
        named = ", ".join(f"{classes[label]} {share:.1%}" for label, share in found[:NAMED])
        return named if len(found) <= NAMED else f"{named} and {len(found) - NAMED} more"

    def plain(self, result: LabelMap, classes: Sequence[str]) -> dict[str, Any]:
        """height, width; classes: the name of each that is there and its share of the pixels, the largest first."""
        height, width = result.labels.shape
        found = [{"name": classes[label], "share": share} for label, share in shares(result.labels.numpy())]
        return {"height": height, "width": width, "classes": found}

    def examples(self, quality: "SegmentationQuality", splits: Splits, classes: Sequence[str]) -> list[Example]:
        dataset, examples = splits.val, list[Example]()
        assert isinstance(dataset, SemanticMasks)
        for one in quality.examples:
            image, truth = dataset.read(one.index)
            found = draw_labels(image, one.labels.numpy(), classes)
            examples.append(Example(dataset.path(one.index).name, found, draw_labels(image, truth, classes)))
        return examples

    def draw(self, image: Image.Image, result: LabelMap, classes: Sequence[str]) -> Image.Image:
        """The labels over the image, the classes with their shares below it."""
        return draw_labels(image, result.labels.numpy(), classes)
