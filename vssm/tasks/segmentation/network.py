"""UPerNet around a backbone by name."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vssm.models import NAMES
from vssm.tasks.backbone import as_backbone, check_widths, maps_of
from vssm.tasks.segmentation.upernet import UPerNet


def upernet(
    backbone: str | nn.Module,
    num_classes: int = 150,
    *,
    pretrained: bool = False,
    backbone_args: Mapping[str, Any] | None = None,
    channels: int = 512,
    aux_channels: int = 256,
    drop_rate: float = 0.1,
) -> UPerNet:
    """UPerNet with its auxiliary head on any backbone, as mmseg configures it for Swin, ConvNeXt and VMamba.

    Args:
        backbone: a timm name, see `vssm.tasks.backbone.create_backbone`, or a module: image batch to NCHW maps, each
            half as fine as the one before.
        num_classes: of the labels; 255 stands for ignored pixels and is none.
        pretrained, backbone_args: of a backbone by name.
        channels, aux_channels: widths of the two heads; the defaults are the papers'. aux_channels=0 for no auxiliary
            head.
        drop_rate: of whole channels before each classifier.

    This package's backbones take images of any size; for others the sides must be a multiple of the coarsest stride
    (`UPerNet.multiple`).

    Raises:
        ValueError: an unknown backbone or one whose maps make no pyramid, a number that makes no sense.
    """
    check_widths(num_classes=num_classes, channels=channels)
    if num_classes > 255:
        raise ValueError(f"num_classes is {num_classes}; labels have 8 bits and 255 is ignored: at most 255")
    if aux_channels < 0:
        raise ValueError(f"aux_channels is {aux_channels}; it must be at least 0, which is for no auxiliary head")
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate is {drop_rate}; it must be in [0, 1)")
    net = as_backbone(backbone, pretrained, backbone_args)
    widths, strides = maps_of(net)
    any_size = isinstance(backbone, str) and backbone.partition(".")[0] in NAMES
    multiple = 1 if any_size else strides[-1]
    return UPerNet(net, widths, num_classes, channels, aux_channels, drop_rate, multiple)
