"""Cascade Mask R-CNN (Cai and Vasconcelos 2018, arXiv 1712.00726) as ConvNeXt, Swin and Spatial-Mamba train it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vssm.tasks.backbone import as_backbone, check_widths
from vssm.tasks.detection.box_head import BoxHead, four_conv_one_fc
from vssm.tasks.detection.mask_head import MaskHead
from vssm.tasks.detection.roi_heads import Stage, StageConfig
from vssm.tasks.detection.rpn import RPNConfig
from vssm.tasks.detection.two_stage import TwoStageDetector

_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STAGES = tuple(
    StageConfig(iou=iou, low_quality=False, stds=stds, box_loss="giou", box_weight=10.0, weight=weight)
    for iou, stds, weight in zip((0.5, 0.6, 0.7), _STDS, (1.0, 0.5, 0.25))
)
PROPOSALS = RPNConfig(border=0, beta=1 / 9, kept=(2000, 1000))


def cascade_mask_rcnn(
    backbone: str | nn.Module,
    num_classes: int = 80,
    *,
    pretrained: bool = False,
    backbone_args: Mapping[str, Any] | None = None,
    fpn_channels: int = 256,
    box_channels: int = 1024,
    mask_channels: int = 256,
    masks: bool = True,
    rpn: RPNConfig = PROPOSALS,
    stages: tuple[StageConfig, ...] = STAGES,
    score: float = 0.05,
    nms: float = 0.5,
    kept: int = 100,
) -> TwoStageDetector:
    """Cascade Mask R-CNN: three stages, each with a box head of four convolutions and a mask head.

    The convolutions of the box heads are normed over the batch, over that of all GPUs in a distributed training.

    Args:
        stages: of each, which boxes it trains on and how.
        rpn: how proposals are trained and chosen.
        Others: as in `vssm.tasks.detection.mask_rcnn.mask_rcnn`.

    Raises:
        ValueError: as `mask_rcnn`, and no stages.
    """
    widths = dict(fpn_channels=fpn_channels, box_channels=box_channels, mask_channels=mask_channels)
    check_widths(num_classes=num_classes, stages=len(stages), **widths)
    heads = []
    for config in stages:
        box = BoxHead(four_conv_one_fc(fpn_channels, box_channels), box_channels, num_classes)
        heads.append(Stage(config, box, MaskHead(fpn_channels, mask_channels, num_classes) if masks else None))
    net = as_backbone(backbone, pretrained, backbone_args)
    return TwoStageDetector(net, heads, rpn, num_classes, fpn_channels, score=score, nms=nms, kept=kept)
