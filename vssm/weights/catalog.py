"""Where the authors publish trained weights, as data."""

from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = [
    "CATALOG",
    "SPATIAL_MAMBA_PAGE",
    "VMAMBA_FILES",
    "VMAMBA_PAGE",
    "Weights",
    "no_weights_error",
    "pretrained_cfg",
]

VMAMBA_PAGE = "https://github.com/MzeroMiko/VMamba/blob/main/assets/performance.md"
VMAMBA_FILES = "https://github.com/MzeroMiko/VMamba/releases/download"
SPATIAL_MAMBA_PAGE = "https://github.com/EdwardChasel/Spatial-Mamba#-main-results"


@dataclass(frozen=True)
class Weights:
    """One published file.

    url: a direct address, or "" where the authors use a page that a program cannot download from.
    page: where a person finds the file.
    top1: ImageNet-1K accuracy at 224 x 224 as published.
    """

    page: str
    url: str
    top1: float
    license: str
    paper: str


def _vmamba(release: str, file: str, top1: float) -> Weights:
    return Weights(VMAMBA_PAGE, f"{VMAMBA_FILES}/%23{release}/{file}", top1, "mit", "arXiv:2401.10166")


def _vim(size: str, top1: float) -> Weights:
    return Weights(f"https://huggingface.co/hustvl/Vim-{size}-midclstok", "", top1, "apache-2.0", "arXiv:2401.09417")


def _spatial_mamba(top1: float) -> Weights:
    return Weights(SPATIAL_MAMBA_PAGE, "", top1, "apache-2.0", "arXiv:2410.15091")


CATALOG: dict[str, Weights] = {
    "vmamba_tiny_s1l8": _vmamba("v2cls", "vssm1_tiny_0230s_ckpt_epoch_264.pth", 82.6),
    "vmamba_tiny_s2l5": _vmamba("v2cls", "vssm_tiny_0230_ckpt_epoch_262.pth", 82.5),
    "vmamba_small_s2l15": _vmamba("v2cls", "vssm_small_0229_ckpt_epoch_222.pth", 83.6),
    "vmamba_small_s1l20": _vmamba("v2cls", "vssm1_small_0229s_ckpt_epoch_240.pth", 83.3),
    "vmamba_base_s2l15": _vmamba("v2cls", "vssm_base_0229_ckpt_epoch_237.pth", 83.9),
    "vmamba_base_s1l20": _vmamba("v2cls", "vssm1_base_0229s_ckpt_epoch_225.pth", 83.8),
    "vanilla_vmamba_tiny": _vmamba("v0cls", "vssmtiny_dp01_ckpt_epoch_292.pth", 82.2),
    "vanilla_vmamba_small": _vmamba("v0cls", "vssmsmall_dp03_ckpt_epoch_238.pth", 83.5),
    "vanilla_vmamba_base": _vmamba("v0cls", "vssmbase_dp06_ckpt_epoch_241.pth", 83.7),
    "spatial_mamba_tiny": _spatial_mamba(83.5),
    "spatial_mamba_small": _spatial_mamba(84.6),
    "spatial_mamba_base": _spatial_mamba(85.3),
    "vim_tiny": _vim("tiny", 76.1),
    "vim_small": _vim("small", 80.5),
    "vim_base": _vim("base", 81.9),
}


def pretrained_cfg(variant: str, **changes: Any) -> dict[str, Any]:
    """timm's description of a variant's weights and of the images they expect."""
    cfg: dict[str, Any] = {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
    }
    weights = CATALOG.get(variant)
    if weights is not None:
        cfg |= {"license": weights.license, "origin_url": weights.page, "paper_ids": weights.paper}
        if weights.url:
            cfg["url"] = weights.url
    return cfg | changes


def no_weights_error(name: str) -> RuntimeError:
    """The error when pretrained=True has no file that a program could fetch."""
    weights = CATALOG.get(name)
    if weights is None:
        return RuntimeError(f"no trained weights are published for {name}; build it with pretrained=False")
    return RuntimeError(
        f"the weights of {name} have no direct address. Download the file from {weights.page} and load it with "
        f"vssm.load_checkpoint(timm.create_model({name!r}), 'file.pth')"
    )
