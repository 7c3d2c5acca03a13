"""Spatial-Mamba: Effective Visual State Space Models via Structure-aware State Fusion (arXiv 2410.15091).

One raster scan per block; its states are fused with their neighbours on the map (SASF) before they are read out.

    stage   stride   channels (tiny)
    stem         4   64
    1            4   64
    2            8   128
    3           16   256
    4           32   512
    head         -   norm, average pooling, linear

A block adds, in turn: a depthwise convolution, the gated mixer, a second depthwise convolution, the MLP. Released
weights load through `vssm.load_checkpoint`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vssm.models.build import create
from vssm.models.hierarchy import Hierarchy, build_stages
from vssm.nn import (
    SS2D,
    BottleneckDownsample,
    DepthwiseConv3x3,
    LayerNorm,
    Mlp,
    ResidualStem,
    StateFusion,
    resolve_state_fn,
)
from vssm.nn.shortcut import Shortcut, add_branch
from vssm.nn.state_fns import StateFn
from vssm.weights.catalog import pretrained_cfg
from vssm.weights.load import checkpoint_filter_fn

# timm.models.register_model adds the names that it registers.
__all__ = ["VARIANTS", "SpatialMamba", "SpatialMambaBlock", "SpatialMambaConfig", "build_mixer"]


@dataclass(frozen=True)
class SpatialMambaConfig:
    """Every field can be overridden by keyword: `timm.create_model("spatial_mamba_tiny", dilations=(1, 3))`.

    dims, depths: channels and blocks of each stage.
    d_state, ssm_ratio, dt_rank, init, discretization: see `vssm.nn.SS2D`.
    mlp_ratio: hidden width of the MLP over its width.
    state_fn: what each mixer does to its states: "sasf", the paper's fusion; "none", "dynamic", "deformable",
        "local_attention", or `state_fn(inner_dim, routes, d_state)` that makes a module.
    dilations: of the fusion "sasf", one kernel each; () for no fusion.
    kernel_size: side of the kernels of "sasf", odd.
    patch_size: stride of the stem.
    drop_path_rate: stochastic depth of the last block.
    out_norms: see `Hierarchy`.
    """

    dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 4, 8, 4)
    d_state: int = 1
    ssm_ratio: float = 2.0
    dt_rank: int | None = None
    mlp_ratio: float = 4.0
    init: str = "mamba"
    discretization: str = "euler"
    state_fn: str | StateFn | None = "sasf"
    dilations: tuple[int, ...] = (1, 3, 5)
    kernel_size: int = 3
    patch_size: int = 4
    drop_path_rate: float = 0.2
    out_norms: bool = False


VARIANTS: dict[str, dict] = {
    "spatial_mamba_tiny": {},
    "spatial_mamba_small": {"depths": (2, 4, 21, 5), "drop_path_rate": 0.3},
    "spatial_mamba_base": {"dims": (96, 192, 384, 768), "depths": (2, 4, 21, 5), "drop_path_rate": 0.5},
    "spatial_mamba_tiny_dynamic": {"state_fn": "dynamic"},
    "spatial_mamba_nano": {"dims": (24, 48, 96), "depths": (1, 2, 2), "patch_size": 2, "drop_path_rate": 0.0},
}


class SpatialMambaBlock(Shortcut):
    """Position convolution, mixer, position convolution, MLP, each residual; (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.cpe1 = DepthwiseConv3x3(dim, residual=True)
        self.norm1 = LayerNorm(dim)
        self.mixer = mixer
        self.cpe2 = DepthwiseConv3x3(dim, residual=True)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        # One rate for both branches; each call draws its own mask.
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcuts:
            return self._with_shortcuts(x)
        x = self.cpe1(x)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = self.cpe2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    @torch.jit.unused
    def _with_shortcuts(self, x: Tensor) -> Tensor:
        x = add_branch(self.cpe1(x), self.norm1, self.mixer, SS2D, self.drop_path)
        return add_branch(self.cpe2(x), self.norm2, self.mlp, Mlp, self.drop_path)


class SpatialMamba(Hierarchy):
    """The network of a `SpatialMambaConfig`; the other arguments are timm's."""

    undecayed_suffixes = ("dt_proj_bias",)  # one-dimensional in the official model, hence without decay there

    def __init__(
        self,
        cfg: SpatialMambaConfig,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        if cfg.patch_size not in (2, 4, 8):
            raise ValueError(f"unknown patch_size {cfg.patch_size!r}: choose one of 2, 4, 8")
        if cfg.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {cfg.mlp_ratio}: every block has an MLP")

        def block(dim: int, drop_path: float) -> nn.Module:
            return SpatialMambaBlock(dim, build_mixer(cfg, dim), cfg.mlp_ratio, drop_path)

        super().__init__(
            ResidualStem(in_chans, cfg.dims[0], cfg.patch_size),
            nn.Identity(),
            build_stages(cfg.dims, cfg.depths, cfg.drop_path_rate, block, BottleneckDownsample),
            cfg.dims,
            cfg.patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            out_norms=cfg.out_norms,
        )


def build_mixer(cfg: SpatialMambaConfig, dim: int) -> SS2D:
    """The mixer of a stage of width `dim`."""
    mixer = SS2D(
        dim,
        d_state=cfg.d_state,
        ssm_ratio=cfg.ssm_ratio,
        dt_rank=cfg.dt_rank,
        scan="raster",
        gate=True,
        init=cfg.init,
        discretization=cfg.discretization,
    )
    state_fn = resolve_state_fn(cfg.state_fn)
    if state_fn is StateFusion:
        own = partial(StateFusion, dilations=cfg.dilations, kernel_size=cfg.kernel_size)
        state_fn = own if len(cfg.dilations) > 0 else None
    if state_fn is not None:
        mixer.set_state_fn(state_fn(mixer.inner_dim, len(mixer.routes), mixer.d_state))
    return mixer


_cfgs: dict[str, Any] = {f"{name}.in1k": pretrained_cfg(name) for name in VARIANTS if name != "spatial_mamba_nano"}
_cfgs["spatial_mamba_nano"] = pretrained_cfg(
    "spatial_mamba_nano", input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0
)
default_cfgs = generate_default_cfgs(_cfgs)


def _spatial_mamba(name: str, pretrained: bool, **kwargs) -> SpatialMamba:
    cfg = SpatialMambaConfig(**VARIANTS[name])
    stages = tuple(range(len(kwargs.get("dims", cfg.dims))))
    return create(SpatialMamba, cfg, name, pretrained, stages, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def spatial_mamba_tiny(pretrained: bool = False, **kwargs) -> SpatialMamba:
    return _spatial_mamba("spatial_mamba_tiny", pretrained, **kwargs)


@register_model
def spatial_mamba_small(pretrained: bool = False, **kwargs) -> SpatialMamba:
    return _spatial_mamba("spatial_mamba_small", pretrained, **kwargs)


@register_model
def spatial_mamba_base(pretrained: bool = False, **kwargs) -> SpatialMamba:
    return _spatial_mamba("spatial_mamba_base", pretrained, **kwargs)


@register_model
def spatial_mamba_tiny_dynamic(pretrained: bool = False, **kwargs) -> SpatialMamba:
    return _spatial_mamba("spatial_mamba_tiny_dynamic", pretrained, **kwargs)


@register_model
def spatial_mamba_nano(pretrained: bool = False, **kwargs) -> SpatialMamba:
    return _spatial_mamba("spatial_mamba_nano", pretrained, **kwargs)
