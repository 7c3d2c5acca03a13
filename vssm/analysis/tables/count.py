"""Parameters and multiply-adds of a row, counted on the meta device: no memory is used and nothing computed."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from vssm.analysis.complexity import complexity
from vssm.analysis.tables.table import Row
from vssm.models.build import create_model
from vssm.tasks.backbone import create_backbone
from vssm.tasks.detection import cascade_mask_rcnn, mask_rcnn
from vssm.tasks.segmentation import UPerNet

DETECTORS = {"mask_rcnn": mask_rcnn, "cascade_mask_rcnn": cascade_mask_rcnn}


@dataclass(frozen=True)
class Counted:
    """params: trainable parameters. macs: multiply-adds of one image, as the papers count them."""

    params: int
    macs: int


def build(row: Row, size: int | None = None) -> nn.Module:
    """The network of a row, in evaluation mode; `size` for another image size than the row's."""
    assert row.model is not None
    options: dict[str, Any] = dict(row.options)
    if size is not None and "img_size" in options:
        options["img_size"] = size
    if row.upernet is None and row.detector is None:
        return create_model(row.model, **options).eval()
    backbone: Any = create_backbone(row.model, **options)  # its maps are normed, as the papers have it
    if row.detector is not None:
        return DETECTORS[row.detector](backbone).eval()
    # With the auxiliary head, which counts as parameters.
    return UPerNet(backbone, backbone.feature_info.channels(), channels=row.upernet or 0).eval()


def count(row: Row) -> Counted | None:
    """What the row's network has and costs at the row's image size; None where there is no network."""
    if row.model is None:
        return None
    # The papers count segmentation in evaluation and everything else in training flags: norms of batches differ.
    flags = "train" if row.upernet is None else "eval"
    model = _on_meta(row.model, json.dumps(row.options), row.upernet, row.detector)
    found = complexity(model, _sides(row), flags)
    return Counted(found.params, found.macs)


@lru_cache(maxsize=1)  # rows that differ in the image size alone follow one another
def _on_meta(model: str, options: str, upernet: int | None, detector: str | None) -> nn.Module:
    values: dict[str, Any] = json.loads(options)
    with torch.device("meta"):
        return build(Row("", model, values, upernet, detector))


def _sides(row: Row) -> tuple[int, int, int]:
    return (3, row.size, row.size) if isinstance(row.size, int) else (3, *row.size)


def prints_as(value: float, printed: str) -> bool:
    """Whether a figure comes out to the printed digit."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed
