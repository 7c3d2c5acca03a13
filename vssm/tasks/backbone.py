"""The backbone of a detector or a segmentation network: any timm model by name, its maps NCHW and normed."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vssm.models import NAMES
from vssm.models.vim import VARIANTS as ONE_STRIDE
from vssm.tasks.classification.model import check_model_name, create_classifier

MAPS = 4


class NormedMaps(nn.Module):
    """A feature extractor of timm, its maps as NCHW, with a LayerNorm over the channels of each or without.

    The official Swin and ConvNeXt backbones for detection have these norms, timm's have not.
    """

    def __init__(self, net: Any, norms: bool):
        super().__init__()
        self.net = net
        self.feature_info: Any = net.feature_info
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
        self.out_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in net.feature_info.channels() if norms)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = list(self.net(x))
        if not self.channels_last and not len(self.out_norms):
            return maps
        maps = maps if self.channels_last else [y.permute(0, 2, 3, 1) for y in maps]
        if len(self.out_norms):
            maps = [norm(y) for norm, y in zip(self.out_norms, maps)]
        return [y.permute(0, 3, 1, 2).contiguous() for y in maps]


class ListedMaps(NormedMaps):
    """`NormedMaps` of a feature extractor for which timm took the model apart, and with it what the model knows of its
    layers. There the first dot of the model's names may be an underscore: `layers_0.blocks` for `layers.0.blocks`."""

    def __init__(self, net: Any, norms: bool, name: str, arguments: Mapping[str, Any]):
        super().__init__(net, norms)
        self.name = name
        self.arguments = {key: value for key, value in arguments.items() if key not in _OF_FEATURES}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As timm's models have it. Raises ValueError for one that has not."""
        whole = self._whole()
        if not hasattr(whole, "group_matcher"):
            raise ValueError(f"optim.layer_decay: {self.name} does not name its layers (group_matcher); leave it out")
        return {part: _in_list(pattern) for part, pattern in whole.group_matcher(coarse=coarse).items()}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters, as timm's models have it; none for one that has not."""
        whole = self._whole()
        named: set[str] = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else set()
        own = {name for name, _ in self.named_parameters()}
        return own & {f"net.{spelled}" for name in named for spelled in (name, name.replace(".", "_", 1))}

    def _whole(self) -> Any:
        with torch.device("meta"):  # for its names: without memory for weights
            return timm.create_model(self.name, **self.arguments)


_OF_FEATURES = ("features_only", "pretrained", "out_indices")


def _in_list(pattern: Any) -> Any:
    """A pattern of a matcher, or a list of them, for the names below `net`."""
    if isinstance(pattern, str):
        inner = pattern.removeprefix("^").replace("|^", "|").replace(r"\.", "[._]", 1)
        return rf"^net\.(?:{inner})"
    return [(_in_list(one), order) for one, order in pattern]


def create_backbone(
    name: str, pretrained: bool = False, in_chans: int = 3, out_norms: bool | None = None, **arguments: Any
) -> nn.Module:
    """(B, C, H, W) -> NCHW maps, the finest first, described by `feature_info.channels()` and `.reduction()`.

    One of each stage; of more than four, the last four. Takes images of any size, also where timm's default is a
    single one (Swin).

    Args:
        name: a timm model, ours among them.
        pretrained: with its weights for classification; `out_norms` start untrained.
        out_norms: a LayerNorm on every map, as the papers' official backbones have it. By default models that norm
            layers have it, those that norm batches (ResNet) have not.
        arguments: of the model.

    Raises:
        ValueError: an unknown name, arguments that the model does not take, or a model whose maps are of one stride.
    """
    check_model_name(name)
    if name.partition(".")[0] in ONE_STRIDE:
        raise ValueError(f"{name} has maps of one stride; a pyramid needs a model whose stages halve the map")
    options = {"pretrained": pretrained, "in_chans": in_chans, "features_only": True, **arguments}
    if name.partition(".")[0] in NAMES:
        return create_classifier(name, **options, out_norms=True if out_norms is None else out_norms)
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is not None and cfg.fixed_input_size and "img_size" not in arguments:
        options.setdefault("dynamic_img_size", True)
    net: Any = create_classifier(name, **options)
    found = len(net.feature_info.channels())
    if found > MAPS and "out_indices" not in arguments:
        net = create_classifier(name, **options, out_indices=tuple(range(found - MAPS, found)))
    if out_norms is None:
        kinds = [type(module) for module in net.modules()]
        out_norms = any(issubclass(k, nn.LayerNorm) for k in kinds) and nn.BatchNorm2d not in kinds
    if hasattr(net, "model"):  # whole, it names its layers itself
        return NormedMaps(net, out_norms)
    return ListedMaps(net, out_norms, name, options)


def as_backbone(backbone: str | nn.Module, pretrained: bool, arguments: Mapping[str, Any] | None) -> nn.Module:
    """A backbone by name is created; a module is taken as it is, and has no arguments."""
    if isinstance(backbone, str):
        return create_backbone(backbone, pretrained, **(arguments or {}))
    if pretrained or arguments:
        raise ValueError("pretrained and backbone_args create a backbone by name; they do nothing for a module")
    return backbone


def maps_of(backbone: Any) -> tuple[list[int], list[int]]:
    """Channels and strides of a backbone's maps. Raises ValueError where they make no pyramid."""
    info = getattr(backbone, "feature_info", None)
    if info is None or not hasattr(info, "channels"):
        raise ValueError(
            f"{type(backbone).__name__} has no feature_info.channels(); give a model's name, or what "
            "timm.create_model(NAME, features_only=True) makes"
        )
    channels = list(info.channels())
    strides = list(info.reduction()) if hasattr(info, "reduction") else [4, 8, 16, 32]
    if len(channels) < 2 or len(channels) != len(strides) or any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(
            "a pyramid needs maps that are each half as fine as the one before, two or more; the backbone's have "
            f"{channels} channels and the strides {strides}"
        )
    return channels, strides


def check_widths(**widths: int) -> None:
    """Raises ValueError for one below 1."""
    for name, width in widths.items():
        if width < 1:
            raise ValueError(f"{name} must be at least 1, got {width}")
