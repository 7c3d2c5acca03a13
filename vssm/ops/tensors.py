"""Dtypes and memory layouts that the operators share."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

# Orders of the dimensions in memory: the channels of a pixel, or of a time step, are contiguous.
MAP = (0, 2, 3, 1)  # (B, C, H, W)
SEQUENCE = (0, 2, 1)  # (B, C, L)
STATES = (0, 1, 3, 4, 5, 2)  # (B, K, C, N, H, W)


def widest_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest dtype among the tensors given, at least one."""
    dtype: torch.dtype | None = None
    for t in tensors:
        if t is not None and t.dtype != dtype:
            dtype = t.dtype if dtype is None else torch.promote_types(dtype, t.dtype)
    assert dtype is not None
    return dtype


def at_least_float32(*tensors: Tensor | None) -> torch.dtype:
    """The dtype an operator computes in: that of its widest input, and never below float32."""
    dtype = torch.float32
    for t in tensors:
        if t is not None and t.dtype is not dtype:
            dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def core_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype the compiled core computes in: float64 if any tensor has it, else float32."""
    for t in tensors:
        if t is not None and t.dtype is torch.float64:
            return torch.float64
    return torch.float32


def to(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """Every tensor given in one dtype; None stays None."""
    return [None if t is None else t.to(dtype) for t in tensors]


@overload
def dense(t: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def dense(t: None, dtype: torch.dtype) -> None: ...
def dense(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A weight as the core reads it: contiguous, of the compute dtype."""
    if t is None or (t.dtype is dtype and t.is_contiguous()):
        return t
    return t.to(dtype).contiguous()


@overload
def row(t: Tensor) -> Tensor: ...
@overload
def row(t: None) -> None: ...
def row(t: Tensor | None) -> Tensor | None:
    """A weight as the core reads it where it takes any dtype: contiguous."""
    return None if t is None else t.contiguous()


def channels_last(x: Tensor) -> Tensor:
    """A map (B, C, H, W) with the channels of a pixel contiguous in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_map(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised map (B, C, H, W) like x with the channels of a pixel contiguous in memory."""
    dtype = x.dtype if dtype is None else dtype
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def empty(like: Tensor, shape: Sequence[int], order: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of `shape` whose dimensions lie in memory in this order; None: as they are counted."""
    if order is None:
        return like.new_empty(shape, dtype=dtype)
    return like.new_empty([shape[dim] for dim in order], dtype=dtype).permute(_inverse(order))


def laid_out(t: Tensor, order: tuple[int, ...] | None) -> Tensor:
    """The same values with the dimensions in this order in memory; t itself where they are."""
    return t.contiguous() if order is None else t.permute(order).contiguous().permute(_inverse(order))


def _inverse(order: tuple[int, ...]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
