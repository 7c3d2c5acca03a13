"""Mamba-Adaptor: State Space Model Adaptor for Visual Recognition (arXiv 2505.12685), its backbones b1 and b2.

VMamba with both adaptors in every mixer: `AdaptorT` on the states of each route, `AdaptorS` on the merged map. Their
widths and depths are not public: they are derived again from the cost of the paper's segmentation models, see
docs/models.md. There is no official code, and there are no official weights.
"""

from dataclasses import dataclass
from typing import Any

from timm.models import generate_default_cfgs, register_model

from vssm.models.build import create
from vssm.models.vmamba import VANILLA, VMamba, VMambaConfig
from vssm.nn.attach import put_adaptors
from vssm.weights.catalog import pretrained_cfg
from vssm.weights.load import checkpoint_filter_fn

# timm.models.register_model adds the names that it registers.
__all__ = ["VARIANTS", "MambaAdaptor", "MambaAdaptorConfig"]


@dataclass(frozen=True)
class MambaAdaptorConfig(VMambaConfig):
    """The fields of `VMambaConfig`, and of the adaptors; each can be overridden by keyword.

    temporal, spatial: whether there is an `AdaptorT`, an `AdaptorS`.
    points, selection: of `AdaptorT`: sampling points per state; "learned", or "static" ones.
    scales: dilations of the kernels of `AdaptorS`; (1,) for a single scale.
    parallel: `AdaptorS` convolves the input of the scan, not its output.
    """

    temporal: bool = True
    spatial: bool = True
    points: int = 4
    selection: str = "learned"
    scales: tuple[int, ...] = (1, 3, 5)
    parallel: bool = False


VARIANTS: dict[str, dict[str, Any]] = {
    "mamba_adaptor_b1": {"dims": (64, 128, 256, 512), "depths": (2, 2, 9, 2)},
    "mamba_adaptor_b2": {**VANILLA, "d_state": 1, "stem": "v2", "downsample": "v3", "depths": (3, 3, 11, 2)},
}


class MambaAdaptor(VMamba):
    """The network of a `MambaAdaptorConfig`; the other arguments are timm's."""

    def __init__(self, cfg: MambaAdaptorConfig, **kwargs: Any):
        super().__init__(cfg, **kwargs)
        # A gain of 1 is the paper's sum: nothing trained is there that the adaptors should leave alone at first.
        options = (cfg.points, cfg.scales, cfg.selection, "none", cfg.parallel)
        put_adaptors(self, cfg.temporal, cfg.spatial, *options, gain=1.0)


default_cfgs = generate_default_cfgs({f"{name}.in1k": pretrained_cfg(name) for name in VARIANTS})


def _mamba_adaptor(name: str, pretrained: bool, **kwargs) -> MambaAdaptor:
    cfg = MambaAdaptorConfig(**VARIANTS[name])
    stages = tuple(range(len(kwargs.get("dims", cfg.dims))))
    return create(MambaAdaptor, cfg, name, pretrained, stages, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)


@register_model
def mamba_adaptor_b1(pretrained: bool = False, **kwargs) -> MambaAdaptor:
    return _mamba_adaptor("mamba_adaptor_b1", pretrained, **kwargs)


@register_model
def mamba_adaptor_b2(pretrained: bool = False, **kwargs) -> MambaAdaptor:
    return _mamba_adaptor("mamba_adaptor_b2", pretrained, **kwargs)
