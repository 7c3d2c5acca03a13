"""Checks that every operator makes of its arguments: one clear error that names the argument."""

from collections.abc import Sequence

from torch import Tensor

from vssm.ops import dispatch


def same_device(**tensors: Tensor | None) -> None:
    """One ValueError that names the first tensor on another device than the first one."""
    first, device = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if device is None:
            first, device = name, tensor.device
        elif tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} but {first} is on {device}; move it with .to('{device}')")


def floating(**tensors: Tensor | None) -> None:
    """One ValueError that names the first tensor of a dtype that no path computes."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in dispatch.FLOATS:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}; supported: float32, float64, bfloat16, float16; "
                "convert it with .float()"
            )


def same_dtype(**tensors: Tensor | None) -> None:
    """One ValueError that names the first tensor of an unsupported dtype, or of another dtype than the first one."""
    (first, reference_tensor), *rest = [(n, t) for n, t in tensors.items() if t is not None]
    floating(**{first: reference_tensor})
    for name, tensor in rest:
        if tensor.dtype != reference_tensor.dtype:
            raise ValueError(
                f"{name} has dtype {tensor.dtype} but {first} has {reference_tensor.dtype}; "
                f"convert it with .to({reference_tensor.dtype})"
            )


def shape(name: str, t: Tensor | None, expected: Sequence[int], why: str = "", **others: Tensor) -> None:
    """One ValueError for a tensor of another shape than the expected one. The message goes on with `why`, and with the
    shapes of the other tensors that it follows from."""
    if t is not None and tuple(t.shape) != tuple(expected):
        given = " and ".join(f"{other} {tuple(like.shape)}" for other, like in others.items())
        raise ValueError(f"{name} must be {tuple(expected)}{why}{given and f' for {given}'}, got {tuple(t.shape)}")


def same_shape(name: str, t: Tensor | None, **others: Tensor) -> None:
    """One ValueError for a tensor that has not the shape of the other one."""
    for other, like in others.items():
        if t is not None and t.shape != like.shape:
            raise ValueError(f"{name} must have the shape of {other}, {tuple(like.shape)}, got {tuple(t.shape)}")


def per_channel(name: str, t: Tensor | None, channels: int) -> None:
    """One ValueError for a weight or bias that is not one element per channel."""
    shape(name, t, (channels,), ", one element per channel of x")


def activation(act: str, *known: str) -> None:
    """One ValueError for an activation that is not among the known ones."""
    if act not in known:
        raise ValueError(f"unknown act {act!r}: choose one of {', '.join(known)}")


def not_empty(x: Tensor, name: str = "x") -> None:
    """One ValueError for maps (B, C, H, W) without channels or pixels; an empty batch of maps is fine."""
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{name} is empty: {tuple(x.shape)}; C, H and W must be at least 1")
