"""What the families share: four stages of blocks at falling resolution, and timm's contract around them.

    image (B, 3, H, W) -> stem -> stages -> norm -> pooling -> linear

Inside, maps are NHWC. `forward_features` returns NHWC (`output_fmt`); `forward_intermediates` and `features_only`
return NCHW unless asked otherwise.
"""

from collections.abc import Callable, Sequence

import torch
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from timm.models._features_fx import register_notrace_function
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from vssm.nn import LayerNorm, init_linear
from vssm.nn.depth_first import depth_first


@register_notrace_function
def check_image(x: Tensor, in_chans: int, min_size: int) -> Tensor:
    """x itself, or one ValueError that says what an image batch of this model must be."""
    if x.dim() != 4:
        raise ValueError(f"expected an image batch (B, {in_chans}, H, W), got {x.dim()} dimensions: {list(x.shape)}")
    if x.shape[1] != in_chans:
        raise ValueError(
            f"expected {in_chans} channels, got {x.shape[1]} in {list(x.shape)}; build the model with in_chans="
            f"{x.shape[1]}, or give it (B, {in_chans}, H, W)"
        )
    if x.shape[0] == 0:
        raise ValueError(f"the batch is empty: {list(x.shape)}; give at least one image")
    if x.shape[2] < min_size or x.shape[3] < min_size:
        raise ValueError(
            f"the image is {x.shape[2]} x {x.shape[3]}, too small for a total stride of {min_size}; resize it to at "
            f"least {min_size} x {min_size}, or choose a model with fewer stages or a smaller patch_size"
        )
    if not x.is_floating_point():
        raise ValueError(f"expected a floating point image, got {x.dtype}; convert it with .float() and normalise it")
    return x


class Stage(nn.Module):
    """An optional downsampling, then blocks, on NHWC maps."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.blocks(self.downsample(x))
        elif self.grad_checkpointing:
            return checkpoint_seq(self.blocks, self.downsample(x))
        else:
            return depth_first(self, self._run, x)

    def _run(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Hierarchy(nn.Module):
    """A backbone of stages with a classifier, in timm's contract.

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
        super().__init__()
        if in_chans < 1 or num_classes < 0:
            raise ValueError(
                f"in_chans must be at least 1 and num_classes at least 0, got {in_chans} and {num_classes}"
            )
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = dims[-1]
        self.min_size = patch_size * 2 ** (len(dims) - 1)
        self.feature_info = [
            {"num_chs": dim, "reduction": patch_size * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.stem = stem
        self.pos_embed = pos_embed
        self.stages = nn.Sequential(*stages)
        self.norm = LayerNorm(dims[-1])
        self.head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate, input_fmt=self.output_fmt)
        self.out_norms = nn.ModuleList(LayerNorm(dim) for dim in dims) if out_norms else None
        self.head_hidden_size = self.head.num_features
        self.apply(init_linear)

    # ---- forward ----

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H/32, W/32, num_features), normed and not pooled."""
        x = check_image(x, self.in_chans, self.min_size)
        x = self.pos_embed(self.stem(x))
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; with pre_logits, only pool."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes). ValueError for what is not an image batch of this model."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of stages, taken before the next downsampling.

        Args:
            indices: the stages to return: a list, the last n for an int, all for None.
            norm: apply the final norm to the last stage's output (a model with out_norms norms every output anyway).
            stop_early: leave out the stages after the last wanted one.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the list alone, else (forward_features(x), list).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"unknown output_fmt {output_fmt!r}: choose one of NCHW, NHWC")
        take, last = feature_take_indices(len(self.stages), indices)
        stages = list(self.stages)[: last + 1] if stop_early else list(self.stages)
        x = check_image(x, self.in_chans, self.min_size)
        x = self.pos_embed(self.stem(x))
        intermediates = []
        for i, stage in enumerate(stages):
            x = stage(x)
            if i not in take:
                continue
            y = x
            if self.out_norms is not None:
                y = self.out_norms[i](y)
            elif norm and i == len(self.feature_info) - 1:
                y = self.norm(y)
            intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return intermediates
        return (self.norm(x) if len(stages) == len(self.stages) else x), intermediates

    # ---- classifier and pruning ----

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for another number of classes (0: none), and another pooling if given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features)
        self.head_hidden_size = self.head.num_features
        init_linear(self.head.fc)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the given intermediates do not need, and return their indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = nn.Sequential(*list(self.stages)[: last + 1])
        if self.out_norms is not None:
            self.out_norms = nn.ModuleList(
                out_norm if i in take else nn.Identity() for i, out_norm in enumerate(self.out_norms)
            )
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
        if shortened or prune_norm:
            self.norm = nn.Identity()
        if shortened or prune_head:
            self.reset_classifier(0, "")
        return take

    # ---- training ----

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward instead of keeping their activations."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer groups for layer-wise learning rates: stem, then stages (coarse) or blocks."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem|^pos_embed", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Names that decay by their shape and must not, by the official rules (1-D tensors and biases never do)."""
        return {name for name, _ in self.named_parameters() if name.startswith("pos_embed")}


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
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
    rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
    stages = []
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        before = downsample(dims[i - 1], dim) if i > 0 else nn.Identity()
        stages.append(Stage(before, [block(dim, rates.pop(0)) for _ in range(depth)]))
    return stages
