"""Feed the four feature maps of a backbone into the neck of a detector: torchvision's feature pyramid network.

python examples/fpn_neck.py --model spatial_mamba_tiny --height 480 --width 640
"""

import argparse

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import vssm  # noqa: F401 (registers the models with timm)


class BackboneWithFPN(nn.Module):
    """Images (B, 3, H, W) -> a dict of maps with `out_channels` channels, as torchvision's detectors expect."""

    def __init__(self, name: str, out_channels: int = 256):
        super().__init__()
        self.body = timm.create_model(name, features_only=True)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(level): x for level, x in enumerate(self.body(images))})


def main() -> dict[str, Tensor]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vmamba_tiny")
    parser.add_argument("--height", type=int, default=224)
    parser.add_argument("--width", type=int, default=320)
    args = parser.parse_args()
    maps = BackboneWithFPN(args.model)(torch.randn(1, 3, args.height, args.width))
    for name, x in maps.items():
        print(f"{name:>4}: {tuple(x.shape)}")
    return maps


if __name__ == "__main__":
    main()
