"""Mask R-CNN (He et al. 2017, arXiv 1703.06870) as mmdet configures it for Swin, ConvNeXt, VMamba and Spatial-Mamba."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vssm.tasks.backbone import as_backbone, check_widths
from vssm.tasks.detection.box_head import BoxHead, two_fc
from vssm.tasks.detection.mask_head import MaskHead
from vssm.tasks.detection.roi_heads import Stage, StageConfig
from vssm.tasks.detection.rpn import RPNConfig
from vssm.tasks.detection.two_stage import TwoStageDetector


def mask_rcnn(
    backbone: str | nn.Module,
    num_classes: int = 80,
    *,
    pretrained: bool = False,
    backbone_args: Mapping[str, Any] | None = None,
    fpn_channels: int = 256,
    box_channels: int = 1024,
    mask_channels: int = 256,
    masks: bool = True,
    rpn: RPNConfig | None = None,
    stage: StageConfig | None = None,
    score: float = 0.05,
    nms: float = 0.5,
    kept: int = 100,
) -> TwoStageDetector:
    """Mask R-CNN on any backbone; with masks=False Faster R-CNN on the same terms.

    Args:
        backbone: a timm name, see `vssm.tasks.backbone.create_backbone`, or a module: image batch to NCHW
            maps, each half as fine as the one before.
        num_classes: without background.
        pretrained, backbone_args: of a backbone by name.
        fpn_channels, box_channels, mask_channels: widths of the pyramid, of the box head's linear layers, of the mask
            head; the defaults are the papers'.
        masks: with a mask head.
        rpn, stage: how the parts are trained and what they propose; the defaults are mmdet's.
        score, nms, kept: which objects an evaluation reports: see `RoIHeads`.

    Raises:
        ValueError: an unknown backbone or one whose maps make no pyramid, a number that is not positive.
    """
    check_widths(
        num_classes=num_classes, fpn_channels=fpn_channels, box_channels=box_channels, mask_channels=mask_channels
    )
    box = BoxHead(two_fc(fpn_channels, box_channels), box_channels, num_classes)
    mask = MaskHead(fpn_channels, mask_channels, num_classes) if masks else None
    return TwoStageDetector(
        as_backbone(backbone, pretrained, backbone_args),
        [Stage(stage or StageConfig(), box, mask)],
        rpn or RPNConfig(),
        num_classes,
        fpn_channels,
        score=score,
        nms=nms,
        kept=kept,
    )
