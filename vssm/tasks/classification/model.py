"""The network of a classifier: any timm model by name."""

from typing import Any

import timm
import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

import vssm.models  # noqa: F401 (registers our models with timm)
from vssm._words import nearest
from vssm.data.imagefolder import some


def create_classifier(
    name: str,
    num_classes: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    drop_path: float | None = None,
    **arguments: Any,
) -> nn.Module:
    """Any timm model by name; `num_classes=None` keeps the model's own.

    Raises ValueError with the nearest names for a name that timm does not know, for arguments that the model's builder
    does not take, and for values of `arguments` that it cannot be built with.
    """
    given = dict(arguments)
    check_model_name(name)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if drop_path is not None:
        arguments["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **arguments)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            unknown = str(error).rpartition("argument ")[2]
            raise ValueError(f"model {name} takes no argument {unknown}") from error
        if f"{name} has no option" in str(error):  # ours name the nearest one
            raise ValueError(str(error)) from error
        raise _unbuildable(name, given, error) from error
    except OSError as error:
        if not name.startswith(_HUB):
            raise
        raise ValueError(
            f"cannot load {name}: {' '.join(str(error).split())[:200]}; check the name, the login (`hf auth login`) "
            "and the network"
        ) from error
    except _REFUSALS as error:
        raise _unbuildable(name, given, error) from error


_HUB = ("hf-hub:", "hf_hub:")
# How timm's builders refuse a value that they did not expect; without arguments of the user it is a bug, and stays one.
_REFUSALS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ValueError, ZeroDivisionError)


def _unbuildable(name: str, given: dict[str, Any], error: Exception) -> Exception:
    if not given:
        return error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    listed = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return ValueError(f"model {name} cannot be built with {listed}: {reason}")


def check_model_name(name: str) -> None:
    """Raises ValueError with the nearest known names when timm has no model of this name."""
    if ":" in name:  # hf-hub:OWNER/NAME and local-dir:PATH are timm's to resolve
        return
    if timm.is_model(name):
        architecture, _, tag = name.partition(".")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            raise ValueError(f"{architecture} has no weights {tag!r}{nearest(tag, tags) or '; known: ' + some(tags)}")
        return
    near = nearest(name, timm.list_models())
    raise ValueError(f"unknown model {name!r}{near} (`vssm models` lists ours, timm.list_models() all)")


@torch.inference_mode()
def check_image_size(model: nn.Module, name: str, input_size: tuple[int, int, int], classes: int | None = None) -> None:
    """One forward of an empty image (C, H, W). Raises ValueError when the model cannot take this size, or (with
    `classes`) answers anything else than one value per class."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        answer = model(torch.zeros(1, *input_size, device=next(model.parameters()).device))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        size = "x".join(map(str, input_size))
        raise ValueError(f"{name} cannot take images of {size}: {' '.join(str(error).split())}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if classes is not None and (not isinstance(answer, Tensor) or answer.shape != (1, classes)):
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"{name} is no classifier as it is built: for one image it gives {found}, not (1, {classes})")


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Those that are stored with the weights, ImageNet's for other models with its 1000 classes, else the indices."""
    count: int = model.num_classes  # type: ignore[assignment]
    stored: Any = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if isinstance(stored, list | tuple) and len(stored) == count:
        return tuple(map(str, stored))
    if count != 1000:
        return tuple(map(str, range(count)))
    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(count))
