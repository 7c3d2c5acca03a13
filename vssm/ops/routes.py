"""Scan routes as data: in which order a scan visits the pixels of a map.

A route is a direction (walk along rows, or along columns) and a step (+1 forwards, -1 backwards). The four routes of
VMamba's cross scan (paper section 4.2, figure 2) are the list `CROSS`. Kernels see a route only as the table of
`visit_order`, so a new kind of route needs no new kernel.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

DIRECTIONS = ("rows", "columns")


class Route(NamedTuple):
    """One way through an H x W map: `direction` "rows" or "columns", `step` +1 or -1."""

    direction: str
    step: int


CROSS = (Route("rows", 1), Route("columns", 1), Route("rows", -1), Route("columns", -1))
UNIDIRECTIONAL = (Route("rows", 1),) * 4
BIDIRECTIONAL = (Route("rows", 1), Route("rows", 1), Route("rows", -1), Route("rows", -1))
RASTER = (Route("rows", 1),)


def encode(routes: tuple[Route, ...]) -> list[int]:
    """Routes as the flat integers of an operator schema: direction index and step, route after route."""
    if len(routes) == 0:
        raise ValueError("a scan needs at least one route, got none; pass e.g. vssm.ops.CROSS")
    codes = []
    for route in routes:
        if (
            not isinstance(route, tuple | list)
            or len(route) != 2
            or route[0] not in DIRECTIONS
            or route[1] not in (1, -1)
        ):
            raise ValueError(
                f"unknown route {route!r}: expected Route(direction, step), direction one of {', '.join(DIRECTIONS)}, "
                "step +1 or -1"
            )
        direction, step = route
        codes += [DIRECTIONS.index(direction), step]
    return codes


def decode(codes: list[int]) -> tuple[Route, ...]:
    """The inverse of `encode`."""
    return tuple(Route(DIRECTIONS[codes[i]], codes[i + 1]) for i in range(0, len(codes), 2))


def to_sequence(x: Tensor, route: Route) -> Tensor:
    """A map (..., H, W) as the sequence (..., H*W) that `route` reads."""
    if route.direction == "columns":
        x = x.transpose(-1, -2)
    x = x.flatten(-2)
    return x.flip(-1) if route.step < 0 else x


def to_map(sequence: Tensor, route: Route, height: int, width: int) -> Tensor:
    """The inverse of `to_sequence`: (..., H*W) back to (..., H, W)."""
    if route.step < 0:
        sequence = sequence.flip(-1)
    if route.direction == "columns":
        return sequence.unflatten(-1, (width, height)).transpose(-1, -2)
    return sequence.unflatten(-1, (height, width))


@lru_cache(maxsize=512)
def visit_order(codes: tuple[int, ...], height: int, width: int) -> Tensor:
    """int32 table (K, H*W): route k is at raster position table[k, t] at time t. Shared: never write to it."""
    raster = torch.arange(height * width, dtype=torch.int32).view(height, width)
    return torch.stack([to_sequence(raster, route) for route in decode(list(codes))]).contiguous()
