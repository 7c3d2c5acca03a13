"""VMamba: Visual State Space Model (arXiv 2401.10166).

A hierarchical backbone whose mixer scans each map along four routes with a selective state space model (SS2D).

    stage   stride   channels (tiny)
    stem         4   96
    1            4   96
    2            8   192
    3           16   384
    4           32   768
    head         -   norm, average pooling, linear

The modern block is mixer + MLP, both residual; the vanilla one is a gated mixer alone. Released weights load through
`vssm.load_checkpoint`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from vssm.models.build import create
from vssm.models.hierarchy import Hierarchy, build_stages
from vssm.nn import (
    SS2D,
    ConvDownsample,
    ConvStem,
    LayerNorm,
    Mlp,
    PatchMerging,
    PatchStem,
    PositionEmbedding,
    resolve_state_fn,
)
from vssm.nn.choices import check_choice
from vssm.nn.shortcut import Shortcut, add_branch
from vssm.nn.state_fns import StateFn
from vssm.ops import Route
from vssm.weights.catalog import SHORT_NAMES, pretrained_cfg
from vssm.weights.load import checkpoint_filter_fn

# timm.models.register_model adds the names that it registers.
__all__ = [
    "DOWNSAMPLES",
    "SHORT_NAMES",
    "STEMS",
    "VANILLA",
    "VARIANTS",
    "VMamba",
    "VMambaBlock",
    "VMambaConfig",
    "build_mixer",
]

STEMS = {"v1": PatchStem, "v2": ConvStem}
DOWNSAMPLES: dict[str, Callable[[int, int], nn.Module]] = {
    "v1": PatchMerging,
    "v2": lambda dim, out_dim: ConvDownsample(dim, out_dim, kernel_size=2),
    "v3": lambda dim, out_dim: ConvDownsample(dim, out_dim, kernel_size=3),
}


@dataclass(frozen=True)
class VMambaConfig:
    """Every field can be overridden by keyword: `timm.create_model("vmamba_tiny", scan="bidirectional")`.

    dims, depths: channels and blocks of each stage.
    d_state, ssm_ratio, dt_rank, scan, conv, conv_bias, act, gate, init, discretization: see `vssm.nn.SS2D`.
    mlp_ratio: hidden width of the MLP over its width; 0 for no MLP.
    state_fn: what each mixer does to its states: "none", "sasf", "dynamic", "deformable", "local_attention", or
        `state_fn(inner_dim, routes, d_state)` that makes a module.
    stem, downsample: "v1" patches and patch merging, "v2" overlapping stem and 2x2 convolution, "v3" 3x3 convolution.
    patch_size: stride of the stem.
    pos_embed: add a learned position embedding; needs img_size, and fixes it.
    drop_path_rate: stochastic depth of the last block.
    out_norms: see `Hierarchy`.
    """

    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    d_state: int = 1
    ssm_ratio: float = 1.0
    dt_rank: int | None = None
    mlp_ratio: float = 4.0
    scan: str | tuple[Route, ...] = "cross"
    conv: bool = True
    conv_bias: bool = False
    act: str = "silu"
    gate: bool | str = False
    init: str = "mamba"
    discretization: str = "euler"
    state_fn: str | StateFn | None = None
    stem: str = "v2"
    downsample: str = "v3"
    patch_size: int = 4
    pos_embed: bool = False
    img_size: int | tuple[int, int] = 224
    drop_path_rate: float = 0.2
    out_norms: bool = False


VANILLA = {
    "d_state": 16,
    "ssm_ratio": 2.0,
    "mlp_ratio": 0.0,
    "conv_bias": True,
    "gate": True,
    "stem": "v1",
    "downsample": "v1",
}
BASE_DIMS = (128, 256, 512, 1024)
NANO = {"dims": (32, 64, 128), "depths": (2, 2, 2), "patch_size": 2, "drop_path_rate": 0.0}

VARIANTS: dict[str, dict] = {
    "vmamba_tiny_s1l8": {},
    "vmamba_tiny_s2l5": {"depths": (2, 2, 5, 2), "ssm_ratio": 2.0},
    "vmamba_small_s2l15": {"depths": (2, 2, 15, 2), "ssm_ratio": 2.0, "drop_path_rate": 0.3},
    "vmamba_small_s1l20": {"depths": (2, 2, 20, 2), "drop_path_rate": 0.3},
    "vmamba_base_s2l15": {"dims": BASE_DIMS, "depths": (2, 2, 15, 2), "ssm_ratio": 2.0, "drop_path_rate": 0.6},
    "vmamba_base_s1l20": {"dims": BASE_DIMS, "depths": (2, 2, 20, 2), "drop_path_rate": 0.5},
    "vanilla_vmamba_tiny": {**VANILLA, "depths": (2, 2, 9, 2)},
    "vanilla_vmamba_small": {**VANILLA, "depths": (2, 2, 27, 2), "drop_path_rate": 0.3},
    "vanilla_vmamba_base": {**VANILLA, "dims": BASE_DIMS, "depths": (2, 2, 27, 2), "drop_path_rate": 0.6},
    "vmamba_tiny_sasf": {"state_fn": "sasf"},
    # Table 5: two of the steps from the vanilla model to s1l8; the others are the aliases below.
    "vmamba_tiny_step_d": {"depths": (2, 2, 2, 2), "d_state": 16, "ssm_ratio": 2.0, "conv": False, "gate": True},
    "vmamba_tiny_step_e": {"depths": (2, 2, 5, 2), "d_state": 16, "conv": False},
    "vmamba_nano": NANO,
}


class VMambaBlock(Shortcut):
    """x + mixer(norm(x)), then x + mlp(norm(x)) unless mlp_ratio is 0; (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = LayerNorm(dim) if mlp_ratio > 0 else None
        self.mlp = Mlp(dim, int(dim * mlp_ratio)) if mlp_ratio > 0 else None
        # One rate for both branches; each call draws its own mask.
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcuts:
            return self._with_shortcuts(x)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        if self.mlp is None or self.norm2 is None:
            return x
        return x + self.drop_path(self.mlp(self.norm2(x)))

    @torch.jit.unused
    def _with_shortcuts(self, x: Tensor) -> Tensor:
        x = add_branch(x, self.norm1, self.mixer, SS2D, self.drop_path)
        if self.mlp is None or self.norm2 is None:
            return x
        return add_branch(x, self.norm2, self.mlp, Mlp, self.drop_path)


class VMamba(Hierarchy):
    """The network of a `VMambaConfig`; the other arguments are timm's."""

    undecayed_prefixes = ("pos_embed",)

    def __init__(
        self,
        cfg: VMambaConfig,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        check_choice("stem", cfg.stem, STEMS)
        check_choice("downsample", cfg.downsample, DOWNSAMPLES)
        if cfg.mlp_ratio < 0:
            raise ValueError(f"mlp_ratio must not be negative, got {cfg.mlp_ratio}; 0 builds blocks without an MLP")
        if cfg.patch_size not in (2, 4, 8):
            raise ValueError(f"unknown patch_size {cfg.patch_size!r}: choose one of 2, 4, 8")

        def block(dim: int, drop_path: float) -> nn.Module:
            return VMambaBlock(dim, build_mixer(cfg, dim), cfg.mlp_ratio, drop_path)

        stages = build_stages(cfg.dims, cfg.depths, cfg.drop_path_rate, block, DOWNSAMPLES[cfg.downsample])
        stem = STEMS[cfg.stem](in_chans, cfg.dims[0], cfg.patch_size)
        size = (cfg.img_size, cfg.img_size) if isinstance(cfg.img_size, int) else cfg.img_size
        grid = (size[0] // cfg.patch_size, size[1] // cfg.patch_size)
        pos_embed = PositionEmbedding(cfg.dims[0], grid) if cfg.pos_embed else nn.Identity()
        super().__init__(
            stem,
            pos_embed,
            stages,
            cfg.dims,
            cfg.patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            out_norms=cfg.out_norms,
        )


def build_mixer(cfg: VMambaConfig, dim: int) -> SS2D:
    """The mixer of a stage of width `dim`."""
    mixer = SS2D(
        dim,
        d_state=cfg.d_state,
        ssm_ratio=cfg.ssm_ratio,
        dt_rank=cfg.dt_rank,
        scan=cfg.scan,
        conv=cfg.conv,
        conv_bias=cfg.conv_bias,
        act=cfg.act,
        gate=cfg.gate,
        init=cfg.init,
        discretization=cfg.discretization,
    )
    state_fn = resolve_state_fn(cfg.state_fn)
    if state_fn is not None:
        mixer.set_state_fn(state_fn(mixer.inner_dim, len(mixer.routes), mixer.d_state))
    return mixer


_cfgs: dict[str, Any] = {f"{name}.in1k": pretrained_cfg(name) for name in VARIANTS if name != "vmamba_nano"}
_cfgs |= {f"{short}.in1k": pretrained_cfg(name) for short, name in SHORT_NAMES.items()}
_cfgs["vmamba_nano"] = pretrained_cfg("vmamba_nano", input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0)
default_cfgs = generate_default_cfgs(_cfgs)


def _vmamba(name: str, pretrained: bool, **kwargs) -> VMamba:
    cfg = VMambaConfig(**VARIANTS[SHORT_NAMES.get(name, name)])
    stages = tuple(range(len(kwargs.get("dims", cfg.dims))))
    return create(VMamba, cfg, name, pretrained, stages, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_s1l8", pretrained, **kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_s2l5", pretrained, **kwargs)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_small_s2l15", pretrained, **kwargs)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_small_s1l20", pretrained, **kwargs)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_base_s2l15", pretrained, **kwargs)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_base_s1l20", pretrained, **kwargs)


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vanilla_vmamba_tiny", pretrained, **kwargs)


@register_model
def vanilla_vmamba_small(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vanilla_vmamba_small", pretrained, **kwargs)


@register_model
def vanilla_vmamba_base(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vanilla_vmamba_base", pretrained, **kwargs)


@register_model
def vmamba_tiny_sasf(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_sasf", pretrained, **kwargs)


@register_model
def vmamba_nano(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_nano", pretrained, **kwargs)


@register_model
def vmamba_tiny(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny", pretrained, **kwargs)


@register_model
def vmamba_small(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_small", pretrained, **kwargs)


@register_model
def vmamba_base(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_base", pretrained, **kwargs)


@register_model
def vmamba_tiny_step_a(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_step_a", pretrained, **kwargs)


@register_model
def vmamba_tiny_step_b(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_step_b", pretrained, **kwargs)


@register_model
def vmamba_tiny_step_c(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_step_c", pretrained, **kwargs)


@register_model
def vmamba_tiny_step_d(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_step_d", pretrained, **kwargs)


@register_model
def vmamba_tiny_step_e(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_step_e", pretrained, **kwargs)


@register_model
def vmamba_tiny_step_f(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_step_f", pretrained, **kwargs)


@register_model
def vmamba_tiny_step_g(pretrained: bool = False, **kwargs) -> VMamba:
    return _vmamba("vmamba_tiny_step_g", pretrained, **kwargs)
