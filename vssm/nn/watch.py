"""Who looks on: a module that somebody watches or has replaced must be called, as a whole and with the whole batch."""

from typing import TypeGuard, TypeVar

import torch.nn.modules.module as torch_module
from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def is_watched(module: nn.Module) -> bool:
    """Whether forward hooks wait for this module's output."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return bool(module._forward_hooks or module._forward_pre_hooks)


def any_watched(module: nn.Module) -> bool:
    """Whether forward hooks wait for the output of this module or of one inside it."""
    return any(is_watched(m) for m in module.modules())


def is_plain(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module is exactly of this kind and unwatched, so that its owner may compute it in its own way.

    False for what stands in for a layer: low-rank adapters, quantised layers.
    """
    return type(module) is kind and not is_watched(module)
