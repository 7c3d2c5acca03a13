"""UPerNet (Xiao et al. 2018, arXiv 1807.10221): maps of four strides to one map of class scores; its auxiliary head.

As mmsegmentation builds it for Swin, ConvNeXt, VMamba and Spatial-Mamba: BatchNorm and ReLU after every convolution but
the last, bilinear resizing without aligned corners. Maps are NCHW here.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.tasks.synced import SyncedBatchNorm


class ConvNormReLU(nn.Sequential):
    """A convolution without bias that keeps the size, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int):
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False),
            SyncedBatchNorm(channels),
            nn.ReLU(inplace=True),
        )


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """x in the height and width of `like`, bilinear."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """A map and its averages over 1, 4, 9 and 36 cells, convolved together: (B, C, H, W) -> (B, channels, H, W)."""

    def __init__(self, in_channels: int, channels: int, scales: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(scale) for scale in scales)
        self.convs = nn.ModuleList(ConvNormReLU(in_channels, channels, 1) for _ in scales)
        self.bottleneck = ConvNormReLU(in_channels + len(scales) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [resize_to(conv(pool(x)), x) for pool, conv in zip(self.pools, self.convs)]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class UPerNetHead(nn.Module):
    """Pyramid pooling on the last map, a feature pyramid over all, fused at the first map's size, classified.

    Maps (B, in_channels[i], H_i, W_i) of any sizes, the largest first -> scores (B, num_classes, H_0, W_0).

    Args:
        in_channels: of the maps.
        num_classes: classes.
        channels: width of the head.
        scales: cells per side of the pyramid pooling.
        drop_rate: of whole channels before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        scales: Sequence[int] = (1, 2, 3, 6),
        drop_rate: float = 0.1,
    ):
        super().__init__()
        if len(in_channels) < 2 or min(in_channels) < 1 or num_classes < 1 or channels < 1:
            raise ValueError(
                "in_channels needs two maps or more, and all counts must be at least 1, got in_channels="
                f"{tuple(in_channels)}, num_classes={num_classes}, channels={channels}"
            )
        *first, last = in_channels
        self.pooling = PyramidPooling(last, channels, scales)
        self.laterals = nn.ModuleList(ConvNormReLU(c, channels, 1) for c in first)
        self.fpn_convs = nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in first)
        self.fpn_bottleneck = ConvNormReLU(len(in_channels) * channels, channels, 3)
        self.drop = nn.Dropout2d(drop_rate)
        self.classifier = _classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if len(maps) != len(self.laterals) + 1:
            raise ValueError(f"expected {len(self.laterals) + 1} maps, got {len(maps)}")
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps)]
        levels.append(self.pooling(maps[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize_to(levels[i], levels[i - 1])
        fine = [conv(level) for conv, level in zip(self.fpn_convs, levels)]
        fine = [fine[0], *(resize_to(level, fine[0]) for level in [*fine[1:], levels[-1]])]
        return self.classifier(self.drop(self.fpn_bottleneck(torch.cat(fine, dim=1))))


class FCNHead(nn.Module):
    """The auxiliary head: one 3x3 convolution and a classifier on one map; (B, C, H, W) -> (B, num_classes, H, W)."""

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, drop_rate: float = 0.1):
        super().__init__()
        self.conv = ConvNormReLU(in_channels, channels, 3)
        self.drop = nn.Dropout2d(drop_rate)
        self.classifier = _classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.conv(x)))


class UPerNet(nn.Module):
    """A backbone with both heads: image (B, 3, H, W) -> scores (B, num_classes, H/4, W/4) in evaluation.

    In training the scores of the auxiliary head come second, from the map before the last, a quarter as fine.

    Args:
        backbone: image to a list of NCHW maps, as `timm.create_model(..., features_only=True)` makes one.
        in_channels: of the maps.
        num_classes, channels, drop_rate: of `UPerNetHead`.
        aux_channels: width of the auxiliary head; 0 for none.
        multiple: what the sides of an image must be a multiple of; whoever applies the network pads to it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_channels: Sequence[int],
        num_classes: int = 150,
        channels: int = 512,
        aux_channels: int = 256,
        drop_rate: float = 0.1,
        multiple: int = 1,
    ):
        super().__init__()
        self.num_classes, self.multiple = num_classes, multiple
        self.backbone = backbone
        self.head = UPerNetHead(in_channels, num_classes, channels, drop_rate=drop_rate)
        self.aux_head = FCNHead(in_channels[-2], num_classes, aux_channels, drop_rate) if aux_channels > 0 else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.backbone(x)
        scores = self.head(maps)
        if self.training and self.aux_head is not None:
            return scores, self.aux_head(maps[-2])
        return scores


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    classifier = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
    return classifier
