"""SS2D in torch's own operators, for programs that run without this package.

Sequences are cut into one chunk of W steps for every row of the map (`vssm.ops.selective_scan.portable`), whatever the
route, so that height and width may be free. A route is an index: pixels are rows of a table, and one look-up brings
those of all routes into the order of the steps.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.routes import Route, decode, to_map, to_sequence
from vssm.ops.selective_scan.portable import chunked


def forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    codes: list[int],
    zoh: bool = False,
    unrolled: bool = False,
) -> Tensor:
    """`reference.forward`, in chunks."""
    routes = decode(codes)
    y = _scan(x, proj, dt_weight, dt_bias, A, routes, True, zoh, unrolled)
    total = reduce(torch.add, _on_map(y, x, routes))  # in onnxruntime a quarter of the time of one sum over routes
    if D is not None:
        total = total + x.permute(0, 2, 3, 1) * D.unflatten(0, (len(routes), -1)).sum(0)
    return total.permute(0, 3, 1, 2)


def states(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    codes: list[int],
    zoh: bool = False,
    unrolled: bool = False,
) -> Tensor:
    """`reference.states`, in chunks."""
    routes = decode(codes)
    h = _scan(x, proj, dt_weight, dt_bias, A, routes, False, zoh, unrolled)
    maps = torch.stack(_on_map(h.flatten(3), x, routes), dim=1)
    return maps.unflatten(-1, (A.shape[1], -1)).permute(0, 1, 5, 4, 2, 3)


def _scan(x, proj, dt_weight, dt_bias, A, routes: tuple[Route, ...], read: bool, zoh, unrolled) -> Tensor:
    """y (T, K, M b, C), or the states (T, K, M b, N, C)."""
    K, channels, rank = dt_weight.shape
    N, batch = A.shape[1], x.shape[0]
    height, width = x.shape[2:]
    order = _order(routes, height, width, x.device)
    images = torch.arange(batch, device=x.device) * (height * width)
    order = (order.unsqueeze(-1) + images).view(width, K, height * batch)  # rows of a table (b H W)
    u = F.embedding(order, _table(x.permute(0, 2, 3, 1), channels))
    route = torch.arange(K, device=x.device).unsqueeze(-1)
    low, B, C = F.embedding(order * K + route, _table(proj, rank + 2 * N)).split([rank, N, N], dim=-1)
    # The bias as a weight of 1: an addition would be one more pass.
    low = torch.cat([low, torch.ones_like(low[..., :1])], dim=-1)
    weight = torch.cat([dt_weight.transpose(1, 2), dt_bias.unsqueeze(1)], dim=1)

    # One product per route: for a batch of two dimensions torch.export would have to prove that neither divides the
    # other.
    dt = torch.bmm(low.transpose(0, 1).contiguous().view(K, -1, rank + 1), weight)
    dt = F.softplus(dt.view(K, width, -1, channels).transpose(0, 1).contiguous())
    return chunked(u, dt, A.view(K, channels, N), B, C if read else None, None, batch, zoh, unrolled)[0]


def _order(routes: tuple[Route, ...], height: int, width: int, device: torch.device) -> Tensor:
    """(W, K, H): where in the raster step t of chunk m of route k is."""
    raster = torch.arange(height * width, device=device).unflatten(0, (height, width))
    chunks = [to_sequence(raster, route).unflatten(0, (height, width)).t() for route in routes]
    return torch.stack(chunks, dim=1)


def _on_map(y: Tensor, x: Tensor, routes: tuple[Route, ...]) -> list[Tensor]:
    """(T, K, M b, C) -> K times (b, H, W, C), pixels in their places."""
    batch, (height, width), K = x.shape[0], x.shape[2:], len(routes)
    steps = torch.arange(width, device=x.device) * (K * height)
    places = (steps + torch.arange(height, device=x.device).unsqueeze(-1)).flatten()  # of route 0, in order of the scan
    images, table = torch.arange(batch, device=x.device)[:, None, None], _table(y, y.shape[-1])
    return [
        F.embedding(to_map(places + k * height, route, height, width).contiguous() * batch + images, table)
        for k, route in enumerate(routes)
    ]


def _table(x: Tensor, columns: int) -> Tensor:
    """(..., c) as rows of so many columns."""
    return x.clone(memory_format=torch.contiguous_format).view(-1, columns)
