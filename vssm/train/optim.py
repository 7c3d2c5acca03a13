"""AdamW's parameter groups, and linear warm-up followed by a cosine, steps or a polynomial."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from vssm._words import nearest
from vssm.settings import OptimSettings


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, start: float, minimum: float) -> float:
    """Learning rate of optimizer step `step` (from 0).

    With W warm-up and T total steps: start + t (peak - start) / W for t < W, then
    minimum + (peak - minimum) / 2 (1 + cos(pi (t - W) / (T - W))); the warm-up is no part of the cosine.
    """
    if step < warmup_steps:
        return start + step * (peak - start) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return minimum + (peak - minimum) / 2 * (1 + math.cos(math.pi * progress))


def learning_rate(
    step: int, total_steps: int, warmup_steps: int, steps_per_epoch: float, optim: OptimSettings
) -> float:
    """Learning rate of optimizer step `step` (from 0) by `optim.schedule`, after the linear warm-up of W steps:

    cosine: `warmup_cosine`
    multistep: lr gamma^m, m the milestones (in epochs) that are passed
    poly: min_lr + (lr - min_lr) (1 - (t - W) / (T - W))^power
    """
    if optim.schedule == "cosine" or step < warmup_steps:
        return warmup_cosine(step, total_steps, warmup_steps, optim.lr, optim.warmup_lr, optim.min_lr)
    if optim.schedule == "multistep":
        passed = sum(step >= round(milestone * steps_per_epoch) for milestone in optim.milestones)
        return optim.lr * optim.gamma**passed
    left = max(0.0, 1 - (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return optim.min_lr + (optim.lr - optim.min_lr) * left**optim.power


def scaled(settings: OptimSettings, images_per_step: int) -> OptimSettings:
    """The linear rule (Goyal et al. 2017, section 2.1), where `lr_batch` asks for it: lr, warmup_lr and min_lr times
    images_per_step / lr_batch, images_per_step being those of all devices and accumulated batches together."""
    if settings.lr_batch is None:
        return settings
    factor = images_per_step / settings.lr_batch
    rates = {name: getattr(settings, name) * factor for name in ("lr", "warmup_lr", "min_lr")}
    return replace(settings, **rates, lr_batch=None)


def create_optimizer(model: nn.Module, settings: OptimSettings, fused: bool | None = None) -> torch.optim.AdamW:
    """AdamW over timm's groups: no weight decay for biases, one-dimensional parameters and what `no_weight_decay()`
    names, or for what the patterns of `no_decay` match instead; with `layer_decay`, a smaller learning rate the deeper
    a layer lies (`group_matcher`). In a network around a backbone, the backbone is asked for both, and all heads are
    the last layer."""
    prefix, layered = _layered(model)
    named = layered.no_weight_decay() if hasattr(layered, "no_weight_decay") else ()  # type: ignore[operator]
    exempt = tuple(prefix + name for name in named)
    if settings.layer_decay is None:
        groups = cast(list[dict], param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=exempt))
    else:
        if not hasattr(layered, "group_matcher"):
            raise ValueError(
                f"optim.layer_decay: nothing in {type(model).__name__} names its layers (group_matcher); leave it out"
            )
        groups = cast(
            list[dict],
            param_groups_layer_decay(
                _Grouped(model, prefix, layered) if prefix else model,
                settings.weight_decay,
                no_weight_decay_list=exempt,
                layer_decay=settings.layer_decay,
            ),
        )
    if settings.no_decay:
        groups = _regrouped(model, groups, settings)
    for group in groups:
        group["lr"] = settings.lr * group.pop("lr_scale", 1.0)
        group.pop("param_names", None)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def _layered(model: nn.Module) -> tuple[str, nn.Module]:
    """The model of timm in `model`, perhaps itself, and how the names of its parameters begin there."""
    for name, module in model.named_modules():
        if hasattr(module, "group_matcher"):
            return f"{name}." if name else "", module
    return "", model


class _Grouped(nn.Module):
    """A network around a model of timm, with that model's groups of layers as timm asks for them."""

    def __init__(self, network: nn.Module, prefix: str, layered: nn.Module):
        super().__init__()
        self.network, self.prefix, self.layered = network, prefix, layered

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.network.named_parameters(*args, **kwargs)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """What none of the patterns matches is the last layer."""

        def inside(pattern: Any) -> Any:
            if isinstance(pattern, str):
                inner = pattern.removeprefix("^").replace("|^", "|")
                return f"^{re.escape(self.prefix)}(?:{inner})"
            return [(inside(one), order) for one, order in pattern]

        matcher = cast(Any, self.layered).group_matcher(coarse=coarse)
        return {name: inside(pattern) for name, pattern in matcher.items()}


def _regrouped(model: nn.Module, groups: Sequence[dict], settings: OptimSettings) -> list[dict]:
    """The same learning rates, with weight decay for all but what `no_decay` matches."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for pattern in settings.no_decay:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise ValueError(
                f"optim.no_decay: no parameter matches {pattern!r}{nearest(pattern, list(names.values()))}"
            )
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in groups:
        for parameter in group["params"]:
            free = any(fnmatchcase(names[id(parameter)], pattern) for pattern in settings.no_decay)
            key = group.get("lr_scale", 1.0), 0.0 if free else settings.weight_decay
            found.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": decay} for (scale, decay), parameters in found.items()
    ]


def create_schedule(
    optimizer: torch.optim.Optimizer, settings: OptimSettings, total_steps: int, steps_per_epoch: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """`learning_rate` on every group, each scaled by its own share of the peak; to be stepped after each step."""
    asked = settings.warmup_steps
    warmup_steps = min(round(settings.warmup_epochs * steps_per_epoch) if asked is None else asked, total_steps)

    def factor(step: int) -> float:
        return learning_rate(step, total_steps, warmup_steps, steps_per_epoch, settings) / settings.lr

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
