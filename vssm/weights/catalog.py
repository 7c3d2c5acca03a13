"""Where the authors publish trained weights, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = [
    "CATALOG",
    "SHORT_NAMES",
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


VIM_PAGE = "https://huggingface.co/hustvl/Vim-{size}-midclstok"

# Other names of models with published weights, and of the steps of VMamba's table 5.
SHORT_NAMES = {
    "vmamba_tiny": "vmamba_tiny_s1l8",
    "vmamba_small": "vmamba_small_s2l15",
    "vmamba_base": "vmamba_base_s2l15",
    # Steps a to c changed the implementation, not the network.
    "vmamba_tiny_step_a": "vanilla_vmamba_tiny",
    "vmamba_tiny_step_b": "vanilla_vmamba_tiny",
    "vmamba_tiny_step_c": "vanilla_vmamba_tiny",
    "vmamba_tiny_step_f": "vmamba_tiny_s2l5",
    "vmamba_tiny_step_g": "vmamba_tiny_s1l8",
}


@dataclass(frozen=True)
class Weights:
    """One published file. What its authors do not state, or nobody could look up, is None.

    page: where a person finds the file.
    url: a direct address; None where the authors use a page that a program cannot download from.
    metrics: as published, in percent: "top-1" on ImageNet-1K at 224 x 224; "box AP" and "mask AP" on COCO; "mIoU" on
        ADE20K, one scale.
    license: of the repository that publishes it, an SPDX identifier in lower case.
    sha256: as the publisher states it; else the first download is recorded (`vssm.weights.download`).
    """

    page: str
    url: str | None
    metrics: Mapping[str, float]
    license: str
    paper: str
    sha256: str | None = None

    @property
    def top1(self) -> float | None:
        return self.metrics.get("top-1")


def _vmamba(release: str, file: str, top1: float) -> Weights:
    return Weights(VMAMBA_PAGE, f"{VMAMBA_FILES}/%23{release}/{file}", {"top-1": top1}, "mit", "arXiv:2401.10166")


def _vim(size: str, file: str, top1: float) -> Weights:
    page = VIM_PAGE.format(size=size)
    return Weights(page, f"{page}/resolve/main/{file}", {"top-1": top1}, "apache-2.0", "arXiv:2401.09417")


def _spatial_mamba(top1: float) -> Weights:
    return Weights(SPATIAL_MAMBA_PAGE, None, {"top-1": top1}, "apache-2.0", "arXiv:2410.15091")


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
    "vim_tiny": _vim("tiny", "vim_t_midclstok_76p1acc.pth", 76.1),
    "vim_small": _vim("small", "vim_s_midclstok_80p5acc.pth", 80.5),
    "vim_base": _vim("base", "vim_b_midclstok_81p9acc.pth", 81.9),
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
    return RuntimeError(by_hand(name, weights))


def by_hand(name: str, weights: Weights) -> str:
    """How to get a file that has no direct address."""
    return (
        f"the weights of {name} have no direct address. Download the file from {weights.page} and load it with "
        f"vssm.load_checkpoint(timm.create_model({name.partition('/')[0]!r}), 'file.pth')"
    )
