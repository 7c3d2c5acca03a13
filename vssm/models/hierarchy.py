"""The base of the hierarchical families: stages of blocks at falling resolution.

image (B, 3, H, W) -> stem -> stages -> norm -> pooling -> linear
"""

from collections.abc import Callable, Sequence

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from torch import Tensor, nn

from vssm.models.base import Backbone, drop_path_rates
from vssm.nn import LayerNorm, init_linear

__all__ = ["Hierarchy", "Stage", "build_stages"]


class Stage(nn.Module):
    """An optional downsampling, then blocks, on NHWC maps."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Hierarchy(Backbone):
    """A backbone of stages with a classifier.

    `forward_features` gives NHWC maps (`output_fmt`), those of the last stage.

    Args:
        stem: image (B, in_chans, H, W) to map (B, H', W', dims[0]).
        pos_embed: module on that map, or nn.Identity().
        stages: `Stage` modules; stage i gives dims[i] channels.
        dims: channels of each stage.
        patch_size: stride of the stem; every later stage halves the map.
        num_classes: 0 for no classifier.
        global_pool: timm's pooling types, "" for none.
        drop_rate: dropout before the classifier.
        out_norms: a LayerNorm on each stage's output in `forward_intermediates` (and so in `features_only`): the
            official backbones for detection and segmentation have them. The classifier does not use them.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        stem: nn.Module,
        pos_embed: nn.Module,
        stages: Sequence[Stage],
        dims: Sequence[int],
        patch_size: int,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        out_norms: bool = False,
    ):
        info = [{"num_chs": dim, "reduction": patch_size * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)]
        super().__init__("stages", info, in_chans, num_classes, min_size=patch_size * 2 ** (len(dims) - 1))
        self.stem = stem
        self.pos_embed = pos_embed
        self.stages = nn.Sequential(*stages)
        self.norm = LayerNorm(dims[-1])
        self.head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate, input_fmt=self.output_fmt)
        self.out_norms = nn.ModuleList(LayerNorm(dim) for dim in dims) if out_norms else None
        self.head_hidden_size = self.head.num_features
        self.apply(init_linear)

    def _embed(self, x: Tensor) -> Tensor:
        return self.pos_embed(self.stem(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H/32, W/32, num_features), normed and not pooled."""
        return self.norm(self.stages(self.embed(x)))

    def _as_map(self, x: Tensor, index: int, norm: bool, size: Sequence[int], output_fmt: str) -> Tensor:
        if self.out_norms is not None:
            x = self.out_norms[index](x)
        elif norm and index == len(self.feature_info) - 1:
            x = self.norm(x)
        return x.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else x

    def _finish(self, x: Tensor, complete: bool) -> Tensor:
        return self.norm(x) if complete else x

    def _prune(self, take: list[int], last: int, shortened: bool) -> bool:
        if self.out_norms is not None:
            self.out_norms = nn.ModuleList(
                out_norm if i in take else nn.Identity() for i, out_norm in enumerate(self.out_norms)
            )
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
        return not shortened

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer groups for layer-wise learning rates: stem, then stages (coarse) or blocks."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem|^pos_embed", "blocks": r"^stages\.(\d+)" if coarse else blocks}


def build_stages(
    dims: Sequence[int],
    depths: Sequence[int],
    drop_path_rate: float,
    block: Callable[[int, float], nn.Module],
    downsample: Callable[[int, int], nn.Module],
) -> list[Stage]:
    """Stages from `block(dim, drop_path)` and `downsample(dim, out_dim)`; drop path grows linearly over all blocks."""
    if len(dims) != len(depths) or len(dims) == 0:
        raise ValueError(f"dims and depths must have one entry per stage, got {tuple(dims)} and {tuple(depths)}")
    if min(depths) < 1 or min(dims) < 1:
        raise ValueError(f"dims and depths must be positive, got {tuple(dims)} and {tuple(depths)}")
    rates = drop_path_rates(drop_path_rate, sum(depths))
    stages = []
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        before = downsample(dims[i - 1], dim) if i > 0 else nn.Identity()
        stages.append(Stage(before, [block(dim, rates.pop(0)) for _ in range(depth)]))
    return stages
