"""SS2D as the paper draws it (VMamba, arXiv 2401.10166, section 4.2 and figure 2): scan, S6, merge.

Four sequences are written out, each runs through the selective scan, and each output is put back on the map.
"""

import torch
from torch import Tensor

from vssm.ops.routes import Route, decode, to_map, to_sequence
from vssm.ops.selective_scan import reference as selective_scan


def split_projection(proj: Tensor, dt_rank: int, state: int) -> tuple[Tensor, Tensor, Tensor]:
    """proj (B, H, W, K*(R+2N)) as dt (B, K, R, H, W), B and C (B, K, N, H, W): the order of x_proj_weight's rows."""
    per_route = proj.unflatten(-1, (-1, dt_rank + 2 * state)).permute(0, 3, 4, 1, 2)
    return per_route.split([dt_rank, state, state], dim=2)  # pyright: ignore[reportReturnType]


def _sequences(x: Tensor, proj: Tensor, dt_weight: Tensor, state: int, routes: tuple[Route, ...]):
    """u, dt, B and C of every route: (B, K*C, L), (B, K*C, L), (B, K, N, L), (B, K, N, L)."""
    dt_low, B, C = split_projection(proj, dt_weight.shape[2], state)
    dt = torch.einsum("bkrhw,kcr->bkchw", dt_low, dt_weight)
    u = torch.stack([to_sequence(x, route) for route in routes], dim=1)
    dt, B, C = (torch.stack([to_sequence(t[:, k], route) for k, route in enumerate(routes)], dim=1) for t in (dt, B, C))
    return u.flatten(1, 2), dt.flatten(1, 2), B, C


def forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    codes: list[int],
    zoh: bool = False,
) -> Tensor:
    """y (B, C, H, W): the sum over routes of the scan's output, each read back on the map."""
    (height, width), routes = x.shape[2:], decode(codes)
    u, dt, B, C = _sequences(x, proj, dt_weight, A.shape[1], routes)
    y, _ = selective_scan.scan(u, dt, A, B, C, D, dt_bias.flatten(), None, True, zoh)
    y = y.unflatten(1, (len(routes), -1))
    return torch.stack([to_map(y[:, k], route, height, width) for k, route in enumerate(routes)]).sum(0)


def states(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    codes: list[int],
    zoh: bool = False,
) -> Tensor:
    """h (B, K, C, N, H, W): each route's states, put back on the map."""
    (height, width), routes = x.shape[2:], decode(codes)
    u, dt, B, _ = _sequences(x, proj, dt_weight, A.shape[1], routes)
    h = selective_scan.states(u, dt, A, B, dt_bias.flatten(), None, True, zoh)
    h = h.unflatten(1, (len(routes), -1))
    return torch.stack([to_map(h[:, k], route, height, width) for k, route in enumerate(routes)], dim=1)
