"""AdamW's parameter groups, and linear warm-up followed by a cosine."""

import math
from typing import cast

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

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


def create_optimizer(model: nn.Module, settings: OptimSettings, fused: bool | None = None) -> torch.optim.AdamW:
    """AdamW over timm's groups: no weight decay for biases, one-dimensional parameters and what
    `model.no_weight_decay()` names; with `layer_decay`, a smaller learning rate the deeper a layer lies
    (`model.group_matcher`)."""
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    if settings.layer_decay is None:
        groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=tuple(exempt))
    else:
        groups = param_groups_layer_decay(
            model, settings.weight_decay, no_weight_decay_list=tuple(exempt), layer_decay=settings.layer_decay
        )
    groups = cast(list[dict], groups)
    for group in groups:
        group["lr"] = settings.lr * group.pop("lr_scale", 1.0)
        group.pop("param_names", None)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def create_schedule(
    optimizer: torch.optim.Optimizer, settings: OptimSettings, total_steps: int, steps_per_epoch: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """`warmup_cosine` on every group, each scaled by its own share of the peak; to be stepped after each step."""
    warmup_steps = min(round(settings.warmup_epochs * steps_per_epoch), total_steps)

    def factor(step: int) -> float:
        lr = warmup_cosine(step, total_steps, warmup_steps, settings.lr, settings.warmup_lr, settings.min_lr)
        return lr / settings.lr

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
