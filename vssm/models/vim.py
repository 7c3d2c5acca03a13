"""Vision Mamba, Vim (arXiv 2401.09417): a plain stack of bidirectional Mamba blocks on patch tokens.

    image (B, 3, H, W) -> patches (B, L, dim) -> class token in their middle, position embedding
        -> depth x [x + mixer(norm(x))] -> norm -> class token -> linear

The residual stream is kept in at least float32. The variants without a class token average the normed tokens; their
tokens are a map (B, H', W', dim) throughout, so that states can be fused on the image grid (Spatial-Mamba, appendix F).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, lecun_normal_, trunc_normal_
from timm.models import (
    checkpoint,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
    register_notrace_function,
    register_notrace_module,
)
from torch import Tensor, nn

from vssm.models.base import Backbone, drop_path_rates
from vssm.models.build import create
from vssm.nn import BidirectionalMamba, RMSNorm, init_linear, resolve_state_fn
from vssm.nn.head import TokenHead, without_class_token
from vssm.nn.shortcut import Shortcut, add_branch
from vssm.nn.state_fns import StateFn
from vssm.weights.catalog import pretrained_cfg
from vssm.weights.load import checkpoint_filter_fn
from vssm.weights.position import resize_positions

# timm.models.register_model adds the names that it registers.
__all__ = ["VARIANTS", "PatchEmbed", "Vim", "VimBlock", "VimConfig", "build_mixer", "place_tokens"]


@dataclass(frozen=True)
class VimConfig:
    """Every field can be overridden by keyword: `timm.create_model("vim_tiny", d_state=8)`.

    dim, depth: width and number of blocks.
    d_state, ssm_ratio, dt_rank, discretization: see `vssm.nn.BidirectionalMamba`.
    patch_size, patch_stride: side of the patches and the step from one to the next.
    class_token: put a class token in the middle and classify by it; else by the mean of the tokens.
    state_fn: what each branch does to its states, as in `VMambaConfig`; needs class_token=False.
    img_size: the position embedding is learned for its grid and resized for others.
    drop_path_rate: stochastic depth of the last block.
    """

    dim: int = 192
    depth: int = 24
    d_state: int = 16
    ssm_ratio: float = 2.0
    dt_rank: int | None = None
    discretization: str = "euler"
    patch_size: int = 16
    patch_stride: int = 16
    class_token: bool = True
    state_fn: str | StateFn | None = None
    img_size: int | tuple[int, int] = 224
    drop_path_rate: float = 0.0


POOLED = {"class_token": False, "d_state": 1}

VARIANTS: dict[str, dict] = {
    "vim_tiny": {},
    "vim_small": {"dim": 384, "drop_path_rate": 0.05},
    "vim_base": {"dim": 768, "drop_path_rate": 0.05},
    "vim_tiny_pool": POOLED,
    "vim_tiny_sasf": POOLED | {"state_fn": "sasf"},
    "vim_nano": {"dim": 96, "depth": 8, "patch_size": 4, "patch_stride": 4, "img_size": 32},
}


class VimBlock(Shortcut):
    """x + mixer(norm(x)) on NHWC tokens; the same sums as the official order, which adds a block late."""

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float):
        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcuts:
            return self._with_shortcuts(x)
        return x + self.drop_path(self.mixer(self.norm(x)))

    @torch.jit.unused
    def _with_shortcuts(self, x: Tensor) -> Tensor:
        return add_branch(x, self.norm, self.mixer, BidirectionalMamba, self.drop_path)


class PatchEmbed(nn.Module):
    """Patches of an image as a map of tokens: (B, C, H, W) -> (B, H', W', dim).

    An image whose sides do not fit is padded with zeros on the right and at the bottom.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, stride: int):
        super().__init__()
        self.patch_size, self.stride = patch_size, stride
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.grid(x.shape[2], x.shape[3])
        bottom = (rows - 1) * self.stride + self.patch_size - x.shape[2]
        right = (columns - 1) * self.stride + self.patch_size - x.shape[3]
        return self.proj(F.pad(x, [0, right, 0, bottom])).permute(0, 2, 3, 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of an image."""
        return self._steps(height), self._steps(width)

    def _steps(self, side: int) -> int:
        # Rounded up by a whole division: torch.compile has no remainder of a free size.
        return (side - self.patch_size + self.stride - 1) // self.stride + 1


register_notrace_module(PatchEmbed)


@torch.fx.wrap
@register_notrace_function
def place_tokens(x: Tensor, pos_embed: Tensor, cls_token: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """NHWC patches with their position embedding, learned on `grid` and resized for another one; with a class token,
    which goes into the middle, as one row (B, 1, L + 1, dim)."""
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        x = x.float()
    height, width = x.shape[1], x.shape[2]
    positions = pos_embed.to(x.dtype)
    if torch.jit.is_scripting():
        fits = height == grid[0] and width == grid[1]
    else:  # with free sizes an export cannot ask; resizing to the same grid changes nothing
        fits = not torch.compiler.is_exporting() and height == grid[0] and width == grid[1]
    if not fits:
        positions = resize_positions(positions, grid[0], grid[1], height, width)
    if cls_token is None:
        return x + positions.view(1, height, width, -1)
    tokens = x.flatten(1, 2)
    middle = tokens.shape[1] // 2
    token = cls_token.to(x.dtype).expand(x.shape[0], -1, -1)
    tokens = torch.cat([tokens[:, :middle], token, tokens[:, middle:]], dim=1)
    return (tokens + positions).unsqueeze(1)


class Vim(Backbone):
    """The network of a `VimConfig`; the other arguments are timm's.

    `forward_features` gives tokens (B, L, dim), the class token at L // 2 if there is one. `forward_intermediates` and
    `features_only` give the outputs of blocks as NCHW maps without it.
    """

    output_fmts = ("NCHW", "NHWC", "NLC")
    undecayed_prefixes = ("pos_embed", "cls_token")
    undecayed_suffixes = ("dt_proj_bias",)

    def __init__(
        self,
        cfg: VimConfig,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
    ):
        if cfg.depth < 1 or cfg.dim < 1 or cfg.patch_size < 1 or not 1 <= cfg.patch_stride <= cfg.patch_size:
            raise ValueError(
                "dim, depth and patch_size must be at least 1 and patch_stride between 1 and patch_size, got "
                f"{cfg.dim}, {cfg.depth}, {cfg.patch_size} and {cfg.patch_stride}"
            )
        if cfg.class_token and resolve_state_fn(cfg.state_fn) is not None:
            raise ValueError("a class token has no position on the image grid: state_fn needs class_token=False")
        info = [{"num_chs": cfg.dim, "reduction": cfg.patch_stride, "module": f"blocks.{i}"} for i in range(cfg.depth)]
        super().__init__("blocks", info, in_chans, num_classes, min_size=cfg.patch_size)
        self.num_prefix_tokens = int(cfg.class_token)
        self.grad_checkpointing = False
        height, width = (cfg.img_size, cfg.img_size) if isinstance(cfg.img_size, int) else cfg.img_size
        self.patch_embed = PatchEmbed(in_chans, cfg.dim, cfg.patch_size, cfg.patch_stride)
        self.grid = self.patch_embed.grid(height, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.dim)) if cfg.class_token else None
        tokens = self.grid[0] * self.grid[1] + self.num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, cfg.dim))
        rates = drop_path_rates(cfg.drop_path_rate, cfg.depth)
        self.blocks: nn.Sequential = nn.Sequential(*(VimBlock(cfg.dim, build_mixer(cfg), rate) for rate in rates))
        self.norm = RMSNorm(cfg.dim)
        pool = ("token" if cfg.class_token else "avg") if global_pool is None else global_pool
        self.head = TokenHead(cfg.dim, num_classes, pool, drop_rate, cfg.class_token)
        self._init_weights()

    def _init_weights(self) -> None:
        self.head.apply(init_linear)
        lecun_normal_(self.patch_embed.proj.weight)
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)
        for block in self.blocks:
            mixer = block.mixer
            assert isinstance(mixer, BidirectionalMamba)
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                mixer.out_proj.weight /= math.sqrt(len(self.blocks))  # so many branches are added to one stream

    def _embed(self, x: Tensor) -> Tensor:
        """An image to NHWC tokens; with a class token, one row of them."""
        return place_tokens(self.patch_embed(x), self.pos_embed, self.cls_token, self.grid)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> normed tokens (B, L, dim), the class token at L // 2 if there is one."""
        x = self.embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x).flatten(1, 2)

    def _run_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(layer, x) if self.grad_checkpointing else layer(x)

    def _as_map(self, x: Tensor, index: int, norm: bool, size: Sequence[int], output_fmt: str) -> Tensor:
        x = self.norm(x) if norm else x
        if self.cls_token is not None:
            x = without_class_token(x.squeeze(1))
        if output_fmt == "NLC":
            return x.flatten(1, -2)
        rows, columns = self.patch_embed.grid(size[0], size[1])
        x = x.reshape(x.shape[0], rows, columns, x.shape[-1])
        return x.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else x

    def _finish(self, x: Tensor, complete: bool) -> Tensor:
        return self.norm(x).flatten(1, 2)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer groups for layer-wise learning rates: embedding, then blocks."""
        return {"stem": r"^cls_token|^pos_embed|^patch_embed", "blocks": [(r"^blocks\.(\d+)", None)]}


def build_mixer(cfg: VimConfig) -> BidirectionalMamba:
    """The mixer of a block."""
    mixer = BidirectionalMamba(cfg.dim, cfg.d_state, cfg.ssm_ratio, cfg.dt_rank, discretization=cfg.discretization)
    state_fn = resolve_state_fn(cfg.state_fn)
    if state_fn is not None:
        mixer.set_state_fn(*(state_fn(mixer.inner_dim, 1, mixer.d_state) for _ in range(2)))
    return mixer


_FIRST_AND_LAST = {"first_conv": "patch_embed.proj", "classifier": "head.fc", "pool_size": None}
_cfgs: dict[str, Any] = {
    f"{name}.in1k": pretrained_cfg(name, **_FIRST_AND_LAST) for name in VARIANTS if name != "vim_nano"
}
_cfgs["vim_nano"] = pretrained_cfg("vim_nano", input_size=(3, 32, 32), crop_pct=1.0, **_FIRST_AND_LAST)
default_cfgs = generate_default_cfgs(_cfgs)


def _vim(name: str, pretrained: bool, **kwargs) -> Vim:
    cfg = VimConfig(**VARIANTS[name])
    depth = kwargs.get("depth", cfg.depth)
    quarters = tuple(sorted({depth * (i + 1) // 4 - 1 for i in range(4)} - {-1}))
    return create(Vim, cfg, name, pretrained, quarters, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def vim_tiny(pretrained: bool = False, **kwargs) -> Vim:
    return _vim("vim_tiny", pretrained, **kwargs)


@register_model
def vim_small(pretrained: bool = False, **kwargs) -> Vim:
    return _vim("vim_small", pretrained, **kwargs)


@register_model
def vim_base(pretrained: bool = False, **kwargs) -> Vim:
    return _vim("vim_base", pretrained, **kwargs)


@register_model
def vim_tiny_pool(pretrained: bool = False, **kwargs) -> Vim:
    return _vim("vim_tiny_pool", pretrained, **kwargs)


@register_model
def vim_tiny_sasf(pretrained: bool = False, **kwargs) -> Vim:
    return _vim("vim_tiny_sasf", pretrained, **kwargs)


@register_model
def vim_nano(pretrained: bool = False, **kwargs) -> Vim:
    return _vim("vim_nano", pretrained, **kwargs)
