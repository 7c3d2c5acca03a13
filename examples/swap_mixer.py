"""SS2D as the token mixer of your own network: here a small MetaFormer that used average pooling.

python examples/swap_mixer.py --scan bidirectional
"""

import argparse

import torch
from torch import Tensor, nn

from vssm.nn import SS2D


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)), on maps (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.mixer: nn.Module = nn.AvgPool2d(3, stride=1, padding=1)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ChannelsFirst(nn.Module):
    """Adapts SS2D, which takes maps (B, H, W, C), to a network with maps (B, C, H, W)."""

    def __init__(self, mixer: SS2D):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def main() -> nn.Module:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scan", default="cross", help="cross, bidirectional, unidirectional, raster or cascade")
    args = parser.parse_args()
    network = nn.Sequential(nn.Conv2d(3, 32, 4, 4), Block(32), Block(32))
    for block in network[1:]:
        block.mixer = ChannelsFirst(SS2D(32, d_state=1, ssm_ratio=1.0, scan=args.scan))
    print(tuple(network(torch.randn(2, 3, 60, 84)).shape))
    return network


if __name__ == "__main__":
    main()
