"""From the features of a region to a mask for each class."""

from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

CELLS = 14


class MaskHead(nn.Module):
    """Four 3x3 convolutions, a transposed one and a classifier: (N, in_channels, 14, 14) -> (N, num_classes, 28, 28).

    Args:
        in_channels: of the features.
        channels: of the layers.
        num_classes: without background.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int):
        super().__init__()
        self.convs = MaskRCNNHeads(in_channels, [channels] * 4, dilation=1)
        self.predictor = MaskRCNNPredictor(channels, channels, num_classes)
        for layer in (self.predictor.conv5_mask, self.predictor.mask_fcn_logits):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(self.convs(x)).float()
