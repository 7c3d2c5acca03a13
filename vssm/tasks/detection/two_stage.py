"""A detector of two stages: backbone, feature pyramid, proposals, heads on regions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vssm.data.padded import PaddedImages
from vssm.tasks.backbone import maps_of
from vssm.tasks.detection.detections import Detections
from vssm.tasks.detection.roi_heads import RoIHeads, Stage
from vssm.tasks.detection.rpn import RPN, RPNConfig
from vssm.tasks.detection.targets import Target, check_targets

# Images are padded to this, as the deepest maps have this stride.
MULTIPLE = 32


class TwoStageDetector(nn.Module):
    """Mask R-CNN or its cascade, by what the stages are. Built by `mask_rcnn` and `cascade_mask_rcnn`.

    In training, `model(images, targets)` gives the losses by name, weighted: their sum is trained. In evaluation,
    `model(images)` gives `Detections` for each image, in pixels of the original image.

    images: a `PaddedImages`, or images (C, h, w) or (B, C, h, w), normalised.
    targets: a dict for each image: see `vssm.tasks.detection.targets`.

    Args:
        backbone: image batch to NCHW maps, each half as fine as the one before, with `feature_info.channels()` and
            `.reduction()`.
        stages: see `Stage`.
        rpn: see `RPNConfig`.
        num_classes: without background.
        fpn_channels: of the pyramid.
        limits: `score`, `nms` and `kept` of `RoIHeads`.

    Raises:
        ValueError: a backbone whose maps make no pyramid; from the call, targets that no loss can be computed of.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: Sequence[Stage],
        rpn: RPNConfig,
        num_classes: int,
        fpn_channels: int = 256,
        **limits: Any,
    ):
        super().__init__()
        channels, strides = maps_of(backbone)
        self.num_classes, self.has_masks = num_classes, any(stage.mask is not None for stage in stages)
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(channels, fpn_channels, extra_blocks=LastLevelMaxPool())
        for layer in self.fpn.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
        self.rpn = RPN(fpn_channels, [*strides, 2 * strides[-1]], rpn, MULTIPLE)
        self.roi_heads = RoIHeads(stages, strides, **limits)

    def forward(
        self, images: PaddedImages | Sequence[Tensor] | Tensor, targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        if not isinstance(images, PaddedImages):
            images = PaddedImages.of(list(images), multiple=MULTIPLE)
        if not self.training:
            if targets is not None:
                raise ValueError("targets are for training; call model.train(), or leave them out to find objects")
            maps = self.maps(images.pixels)
            return self.roi_heads.detect(maps, self.rpn(maps, images)[0], images)
        check_targets(targets, images, self.num_classes, self.has_masks)
        assert targets is not None
        maps = self.maps(images.pixels)
        proposals, losses = self.rpn(maps, images, targets)
        return losses | self.roi_heads.losses(maps, proposals, images, targets)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """The pyramid: (B, C, H, W) -> maps of `fpn_channels`, the finest first, one more than the backbone has."""
        found = self.backbone(pixels)
        return list(self.fpn({str(index): level for index, level in enumerate(found)}).values())

    def forward_counted(self, pixels: Tensor, proposals: int = 1000, masks: int = 100) -> list[Tensor]:
        """What `vssm.complexity` runs, as the papers count: every layer, on a number of regions that is given."""
        maps = self.maps(pixels)
        self.rpn.head(maps)
        self.roi_heads.forward_counted(maps[0], proposals, masks)
        return maps
