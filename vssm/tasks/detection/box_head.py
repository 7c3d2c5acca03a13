"""From the features of a region to its class and to a better box for each class."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead

from vssm.tasks.synced import SyncedBatchNorm

CELLS = 7


def two_fc(channels: int, width: int) -> nn.Module:
    """Mask R-CNN's trunk: two linear layers with ReLU. (N, channels, 7, 7) -> (N, width)."""
    return _linears_xavier(TwoMLPHead(channels * CELLS**2, width))


def four_conv_one_fc(channels: int, width: int) -> nn.Module:
    """Cascade Mask R-CNN's trunk: four 3x3 convolutions with BatchNorm, a linear layer, all with ReLU."""
    shape = (channels, CELLS, CELLS)
    return _linears_xavier(FastRCNNConvFCHead(shape, [channels] * 4, [width], norm_layer=SyncedBatchNorm))


class BoxHead(nn.Module):
    """Features (N, channels, 7, 7) -> scores (N, num_classes + 1), background last, and deltas (N, num_classes, 4).

    Args:
        trunk: features to (N, width).
        width: what the trunk gives.
        num_classes: without background.
    """

    def __init__(self, trunk: nn.Module, width: int, num_classes: int):
        super().__init__()
        self.trunk = trunk
        self.cls = nn.Linear(width, num_classes + 1)
        self.reg = nn.Linear(width, 4 * num_classes)
        for layer, std in ((self.cls, 0.01), (self.reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not len(x):  # a BatchNorm in training refuses an empty batch
            empty = torch.zeros(0, self.cls.out_features, device=x.device)
            return empty, empty.new_zeros(0, self.reg.out_features // 4, 4)
        x = self.trunk(x)
        return self.cls(x).float(), self.reg(x).float().unflatten(1, (-1, 4))


def _linears_xavier(trunk: nn.Module) -> nn.Module:
    for layer in trunk.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return trunk
