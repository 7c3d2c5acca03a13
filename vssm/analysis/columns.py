"""The mixing matrix of a block with fusion or adaptors, by columns: what every pixel gives to all others.

A row needs the transpose of the fusion, which automatic differentiation gives at several times the cost. A column needs
the fusion itself: the states that one pixel leaves behind are fused and read out. For the whole matrix that is faster.

With a fusion whose weights are fixed, and in the mean of the channels, the order of the sums changes: of the E channels
of the states, every tap of the fusion makes one number per pixel and column, a matrix product; the rest is as for one
channel.
"""

import torch
from torch import Tensor

from vssm.analysis.frozen import Neighbours
from vssm.analysis.scans import BlockScan, RouteScan

__all__ = ["matrix_by_columns", "steps"]

# Elements of float64 that the states of a chunk of pixels may have: 64 MB.
CHUNK = 1 << 23
# The same where they are summed up at once: 4 MB, which caches hold.
SUMMED = 1 << 19


@torch.no_grad()
def matrix_by_columns(
    scan: BlockScan, numbers: range | list[int], direct: bool, channel: int | None, weights: str, skip: bool
) -> Tensor:
    """M (L, L) in float64, raster order, of the routes `numbers`; not of the cascade.

    `direct`: with what a parallel adaptor_s adds. channel, weights, skip: see `vssm.analysis.matrices.mixing_rows`.
    """
    if isinstance(scan.fused, Neighbours) and scan.merged is None and not (direct and scan.direct is not None):
        return _summed_first(scan, scan.fused, numbers, channel, weights, skip)
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


def _summed_first(
    scan: BlockScan, fused: Neighbours, numbers: range | list[int], channel: int | None, weights: str, skip: bool
) -> Tensor:
    """`matrix_by_columns` of a fusion with fixed weights: of the states
    h[j, e, t] = exp(A (dt_{j+1} + ... + dt_t)) b_j the products with the weights of each tap, then the taps."""
    (height, width), L = scan.size, scan.size[0] * scan.size[1]
    M = scan.y.new_zeros(L, L)
    rows, columns = (torch.arange(size, device=M.device) for size in scan.size)
    y = (rows + fused.offsets[:, :1]).clamp(0, height - 1)
    x = (columns + fused.offsets[:, 1:]).clamp(0, width - 1)
    neighbours = (y[:, :, None] * width + x[:, None]).flatten(1)  # (taps, L)
    channels = slice(None) if channel is None else slice(channel, channel + 1)
    for k in numbers:
        part = scan.routes[k]
        at, C = part.reads[0], part.C[0]
        time = at.argsort()
        rate = part.A[channels] if weights != "qk" else torch.zeros_like(part.A[channels])
        sums = part.dt[0, :, channels].cumsum(0).T.contiguous()  # (E, T)
        _, b = steps(part, 0, channel, weights)
        taps = fused.weights[:, k, channels] / len(sums)
        step = max(1, SUMMED // sums.numel())
        for n in range(part.A.shape[1]):
            read = torch.ones_like(C[:, n]) if weights == "decay" else C[time, n]  # by position
            for first in range(0, L, step):
                mine = slice(first, min(first + step, L))
                h = sums[:, first:] - sums[:, mine].T[..., None]  # (columns, E, T - first)
                h *= rate[:, n, None]
                begun = torch.ones(len(h), h.shape[-1], dtype=torch.bool, device=h.device).triu()
                h.masked_fill_(~begun[:, None], -torch.inf)
                h.exp_().mul_(b[mine, :, n, None])
                found = h.new_zeros(len(h), len(taps), L)
                found[..., first:] = taps @ h
                found = found.gather(2, time[neighbours].expand(len(h), -1, -1)).sum(1)
                M[:, at[mine]] += read[:, None] * found.T
        if skip:
            M.diagonal().add_(part.D[channels].mean())
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
