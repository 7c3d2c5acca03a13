"""What may happen to states between scan and readout, by name."""

from collections.abc import Callable

from torch import nn

from vssm.nn.deformable_fusion import DeformableFusion
from vssm.nn.dynamic_fusion import DynamicFusion
from vssm.nn.local_attention_fusion import LocalAttentionFusion
from vssm.nn.state_fusion import StateFusion

__all__ = ["STATE_FNS", "StateFn", "resolve_state_fn"]

# state_fn(inner_dim, routes, d_state) makes a module h (B, K, C, N, H, W) -> the same.
StateFn = Callable[[int, int, int], nn.Module]

STATE_FNS: dict[str, StateFn | None] = {
    "none": None,
    "sasf": StateFusion,
    "dynamic": DynamicFusion,
    "deformable": DeformableFusion,
    "local_attention": LocalAttentionFusion,
}


def resolve_state_fn(state_fn: str | StateFn | None) -> StateFn | None:
    """Resolve a name to a factory; a callable and None are returned as they are. ValueError for anything else."""
    if state_fn is None or callable(state_fn):
        return state_fn
    if state_fn not in STATE_FNS:
        raise ValueError(
            f"unknown state_fn {state_fn!r}: choose one of {', '.join(STATE_FNS)}, or give a callable "
            "state_fn(inner_dim, routes, d_state) -> module"
        )
    return STATE_FNS[state_fn]
