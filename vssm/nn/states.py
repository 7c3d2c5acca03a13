"""States h (B, K, C, N, H, W) as maps, and back."""

# Tensor.unflatten has no annotations.
# pyright: reportUnknownVariableType=false

from torch import Tensor

__all__ = ["as_map", "as_states", "mean_state"]


def as_map(h: Tensor) -> Tensor:
    """h as one map (B, K*C*N, H, W)."""
    if h.shape[1] == 1 and h.shape[3] == 1:
        # Squeezed: exporting with free H and W would guard on what a view needs to know.
        return h.squeeze(3).squeeze(1)
    return h.flatten(1, 3)


def as_states(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_map`, `like` the states it was made from."""
    if like.shape[1] == 1 and like.shape[3] == 1:
        return x.unsqueeze(1).unsqueeze(3)
    return x.unflatten(1, [like.shape[1], like.shape[2], like.shape[3]])


def mean_state(h: Tensor) -> Tensor:
    """The mean over the N states of a channel, as one map (B, K*C, H, W)."""
    mean = h.squeeze(3) if h.shape[3] == 1 else h.mean(3)
    return mean.squeeze(1) if h.shape[1] == 1 else mean.flatten(1, 2)
