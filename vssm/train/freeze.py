"""Which parameters stay as they are: patterns over their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vssm._words import nearest
from vssm.nn.attach import freeze_base

BASE = "base"


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Freezes the parameters whose names match one of the glob `patterns`, such as `stem.*` or `*.A_log`. The pattern
    `base`, by itself, freezes all but adaptors, norms and classifier (`vssm.freeze_base`).

    Returns the norms whose running statistics have to stay too: those with all parameters frozen, or whose statistics
    match a pattern by name (`*.running_mean`). It is up to the caller to keep them in evaluation mode.

    Raises ValueError for a pattern that matches nothing, naming the nearest names, and when nothing is left to train.
    """
    if list(patterns) == [BASE]:
        freeze_base(model)
        return []  # the norms train
    named = dict(model.named_parameters())
    names = [*named, *(name for name, _ in model.named_buffers())]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"model.freeze: no parameter matches {pattern!r}{_nearest(pattern, model)}")

    def matches(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    for name, parameter in named.items():
        if matches(name):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ValueError(f"model.freeze: {' '.join(patterns)} leaves nothing to train; leave out a pattern")
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        and module.track_running_stats
        and (matches(f"{name}.running_mean") or _is_frozen(module))
    ]


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _nearest(pattern: str, model: nn.Module) -> str:
    """Names like the pattern, which are modules' (with `.*`) as well as parameters'."""
    modules = [f"{name}.*" for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    parameters = [name for name, _ in model.named_parameters()]
    return nearest(pattern, [*modules, *parameters], f"; names look like {', '.join(parameters[:2])}")
