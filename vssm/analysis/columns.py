"""The mixing matrix of a block with fusion or adaptors, by columns: what every pixel gives to all others.

A row needs the transpose of the fusion, which automatic differentiation gives at several times the cost. A column needs
the fusion itself: the states that one pixel leaves behind are fused and read out. For the whole matrix that is faster.
"""

import torch
from torch import Tensor

from vssm.analysis.scans import BlockScan, RouteScan

__all__ = ["matrix_by_columns", "steps"]

# Elements of float64 that the states of a chunk of pixels may have: 64 MB.
CHUNK = 1 << 23


@torch.no_grad()
def matrix_by_columns(
    scan: BlockScan, numbers: range | list[int], direct: bool, channel: int | None, weights: str, skip: bool
) -> Tensor:
    """M (L, L) in float64, raster order, of the routes `numbers`; not of the cascade.

    `direct`: with what a parallel adaptor_s adds. channel, weights, skip: see `vssm.analysis.matrices.mixing_rows`.
    """
    (height, width), E, K = scan.size, scan.y.shape[0], len(scan.routes)
    L, N = height * width, scan.routes[0].A.shape[1]
    M = scan.y.new_empty(L, L)
    step = max(1, CHUNK // (K * E * N * L))
    for first in range(0, L, step):
        chosen = torch.arange(first, min(first + step, L), device=M.device)
        one = M.new_zeros(len(chosen), E, L)
        one[torch.arange(len(chosen)), :, chosen] = 1
        h = M.new_zeros(len(chosen), K, E, N, L)
        for k in numbers:
            h[:, k, :, :, scan.routes[k].reads[0]] = _states(scan.routes[k], chosen, weights).permute(1, 2, 3, 0)
        if scan.fused is not None:
            h = scan.fused(h.unflatten(-1, scan.size)).flatten(-2)
        y = torch.zeros_like(one)
        for k in numbers:
            y += _read_out(scan.routes[k], h[:, k], weights)
            if skip:
                y += scan.routes[k].D[:, None] * one
        if scan.merged is not None:
            y = scan.merged(y.unflatten(-1, scan.size)).flatten(2)
        if scan.direct is not None and direct:
            y += scan.direct(one.unflatten(-1, scan.size)).flatten(2)
        M[:, chosen] = (y.mean(1) if channel is None else y[:, channel]).T
    return M


def _states(part: RouteScan, chosen: Tensor, weights: str) -> Tensor:
    """(T, queries, E, N): the states of every step that are left of u = 1 at one pixel, in every channel."""
    decay, b = steps(part, 0, None, weights)
    begins = {int(t): q for q, t in enumerate(part.reads[0].argsort()[chosen])}
    z = b.new_zeros(len(chosen), *part.A.shape)
    h = b.new_zeros(len(b), *z.shape)
    for t in range(min(begins), len(b)):
        z *= decay[t]
        if t in begins:
            z[begins[t]] = b[t]
        h[t] = z
    return h


def _read_out(part: RouteScan, h: Tensor, weights: str) -> Tensor:
    """(queries, E, L) of states (queries, E, N, L)."""
    if weights == "decay":
        return h.sum(2)
    C = torch.empty_like(part.C[0].T)
    C[:, part.writes[0]] = part.C[0].T
    return (h * C).sum(2)


def steps(part: RouteScan, s: int, channel: int | None, weights: str) -> tuple[Tensor, Tensor]:
    """exp(dt A) and b of every step (T, E, N) of one sequence, as `weights` has them."""
    chosen = slice(None) if channel is None else slice(channel, channel + 1)
    decay = torch.exp(part.dt[s, :, chosen, None] * part.A[chosen])
    if weights == "qk":
        decay = torch.ones_like(decay)
    if weights == "scan":
        return decay, part.b[s, :, chosen]
    b = torch.ones_like(decay) if weights == "decay" else part.B[s, :, None].expand_as(decay)
    return decay, b
