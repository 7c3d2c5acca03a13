"""The network of a classifier: any timm model by name."""

from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import nn

import vssm.models  # noqa: F401 (registers our models with timm)
from vssm._words import nearest


def create_classifier(
    name: str,
    num_classes: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    drop_path: float | None = None,
    **arguments: Any,
) -> nn.Module:
    """Any timm model by name; `num_classes=None` keeps the model's own.

    Raises ValueError with the nearest names for a name that timm does not know, and for arguments that the model's
    builder does not take.
    """
    check_model_name(name)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if drop_path is not None:
        arguments["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **arguments)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        unknown = str(error).rpartition("argument ")[2]
        raise ValueError(f"model {name} takes no argument {unknown}") from error


def check_model_name(name: str) -> None:
    """Raises ValueError with the nearest known names when timm has no model of this name."""
    if timm.is_model(name) or ":" in name:  # hf-hub:OWNER/NAME and local-dir:PATH are timm's to resolve
        return
    near = nearest(name, timm.list_models())
    raise ValueError(f"no model is called {name!r}{near} (`vssm models` lists ours, timm.list_models() all)")


@torch.inference_mode()
def check_image_size(model: nn.Module, name: str, input_size: tuple[int, int, int]) -> None:
    """One forward of an empty image (C, H, W). Raises ValueError when the model cannot take this size."""
    was_training = model.training
    model.eval()
    try:
        model(torch.zeros(1, *input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, input_size))
        raise ValueError(f"{name} cannot take images of {size}: {error}") from error
    model.train(was_training)


def class_names(model: nn.Module) -> tuple[str, ...]:
    """ImageNet's names for a model with its 1000 classes, else numbers."""
    count: int = model.num_classes  # type: ignore[assignment]
    if count != 1000:
        return tuple(map(str, range(count)))
    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(count))
