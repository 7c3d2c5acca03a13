"""Features of regions: RoIAlign on the level of the pyramid that fits a region's size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

# mmdet's SingleRoIExtractor: regions of less than twice this side, in strides of the finest level, belong to that
# level: 56 pixels with a stride of 4.
FINEST = 14


def level_of(boxes: Tensor, finest: float, levels: int) -> Tensor:
    """floor(log2(sqrt(area) / finest + 1e-6)) of boxes (N, 4), in 0..levels - 1."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (side / finest + 1e-6).log2().floor().clamp(0, levels - 1).long()


class RoIFeatures(nn.Module):
    """mmdet's SingleRoIExtractor with RoIAlign.

    Coordinates are aligned (a half pixel less than torchvision's detectors use), and a cell is the mean of as many
    samples as it has pixels (sampling ratio 0).

    Args:
        strides: of the levels that regions are taken from.
        cells: per side of a region.
    """

    def __init__(self, strides: Sequence[int], cells: int):
        super().__init__()
        self.strides, self.cells = tuple(strides), cells

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), the finest first, and boxes (N_i, 4) of each image -> (sum of N_i, C, cells, cells)."""
        images = [box.new_full((len(box), 1), index) for index, box in enumerate(boxes)]
        regions = torch.cat([torch.cat(images), torch.cat(list(boxes))], dim=1)
        level = level_of(regions[:, 1:], FINEST * self.strides[0], len(self.strides))
        features = maps[0].new_zeros(len(regions), maps[0].shape[1], self.cells, self.cells)
        for index, stride in enumerate(self.strides):
            at = torch.where(level == index)[0]
            if len(at):
                level_map = maps[index].to(regions.dtype)  # half precision would move the regions
                found = roi_align(level_map, regions[at], self.cells, 1 / stride, sampling_ratio=0, aligned=True)
                features[at] = found.to(features.dtype)
        return features
