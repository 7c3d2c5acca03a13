"""From a variant's configuration and a caller's keywords to a timm model."""

from collections.abc import Mapping
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import timm
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from vssm._words import nearest
from vssm.weights.catalog import CATALOG, no_weights_error
from vssm.weights.download import download
from vssm.weights.read import read_checkpoint

__all__ = ["create", "create_model"]

ModelT = TypeVar("ModelT", bound=nn.Module)

# What every model takes besides the fields of its configuration, and what timm's builder takes before it.
_MODEL_KEYWORDS = ("in_chans", "num_classes", "global_pool", "drop_rate")
_TIMM_KEYWORDS = set(signature(build_model_with_cfg).parameters) | {
    "features_only",
    "out_indices",
    "feature_cls",
    "pruned",
}


def create(
    model_cls: type[ModelT],
    cfg: Any,
    name: str,
    pretrained: bool,
    default_features: tuple[int, ...],
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> ModelT:
    """Build `name`: keywords that are fields of `cfg` override it, the others go to timm and to the model.

    Raises TypeError for a keyword that nobody knows, with the nearest one that is known.

    `default_features` are the maps that `features_only` gives when it is not told which.

    With pretrained=True the weights come from the published file of the variant (see `vssm.weights.catalog`), or
    from what `pretrained_cfg_overlay` names.
    """
    names = {field.name for field in fields(cfg)}
    _check_keywords(name, kwargs, names)
    overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in names}
    # Lists, as a YAML file or a command line gives them, are as good as tuples.
    overrides = {key: tuple(v) if isinstance(v, list) else v for key, v in overrides.items()}
    cfg = replace(cfg, **overrides)
    if getattr(cfg, "out_norms", False) and not kwargs.get("features_only", False):
        raise ValueError(
            "out_norms are norms of feature maps, which a classifier would carry and never use; build the model with "
            "features_only=True, or without out_norms"
        )
    if pretrained:
        pretrained_cfg_overlay = _with_weights(name, pretrained_cfg, pretrained_cfg_overlay, cache_dir)
    model = build_model_with_cfg(
        model_cls,
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        cache_dir=cache_dir,
        model_cfg=cfg,
        feature_cfg={
            "out_indices": default_features,
            "feature_cls": "getter",
            "flatten_sequential": True,
        },
        **kwargs,
    )
    for module in model.modules():  # the description of the weights must not carry the weights themselves
        vars(module).get("pretrained_cfg", {}).pop("state_dict", None)
    return model


def _check_keywords(name: str, kwargs: Mapping[str, Any], own: set[str]) -> None:
    """One TypeError that names the nearest right word for what neither the configuration nor timm knows."""
    known = own | set(_MODEL_KEYWORDS) | _TIMM_KEYWORDS
    for key in kwargs:
        if key not in known:
            listed = ", ".join([*sorted(own), *_MODEL_KEYWORDS])
            raise TypeError(f"{name} has no option {key!r}{nearest(key, known)}; it has {listed}")


def _with_weights(
    name: str, pretrained_cfg: Any, overlay: dict[str, Any] | None, cache_dir: str | Path | None
) -> dict[str, Any]:
    """The overlay with the weights in it as a state dict: read, checked and hashed by us, matched by timm."""
    found = resolve_pretrained_cfg(name, pretrained_cfg, overlay)
    overlay = dict(overlay or {})
    if found.state_dict is not None or found.hf_hub_id:
        return overlay
    if found.file and Path(found.file).is_dir():  # local-dir:FOLDER, as the Hub has it: timm finds the file in it
        return overlay
    if found.file:
        return overlay | {"state_dict": read_checkpoint(found.file).tensors}
    if found.url:
        url = found.url if isinstance(found.url, str) else found.url[0]
        expected = next((w.sha256 for w in CATALOG.values() if w.url == url), None)
        return overlay | {"state_dict": read_checkpoint(download(url, cache_dir, expected)).tensors}
    raise no_weights_error(name)


def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, with the nearest names in the error for an unknown one.

    Any timm model can be made with it. Keywords override the variant, e.g. `scan="bidirectional"`, `d_state=4`.

    Raises:
        ValueError: an unknown name, or an unknown value of an option (the message lists the choices).
    """
    architecture = name.partition(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models(), "; vssm.list_models() lists the names of this package")
        raise ValueError(f"unknown model {name!r}{near}")
    return timm.create_model(name, pretrained=pretrained, **kwargs)
