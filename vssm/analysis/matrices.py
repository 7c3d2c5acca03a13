"""Scans as matrices: y = M u for every channel, as attention has one for every head.

    M[i, j] = <C_i, exp(A (S_i - S_j)) b_j>  for j <= i,  0 behind,    S_i = dt_1 + ... + dt_i,   + D on the diagonal

VMamba (arXiv 2401.10166), section 5.3 and appendix C, equation 20: Q = C, K = B, w_i = exp(A S_i), V = dt u. The
quotient (Q . w)(K / w)^T there overflows as soon as w underflows; here no quotient is formed. Spatial-Mamba (arXiv
2410.15091), appendix C and figure 5: between the states and C stands the fusion, so that row i is a weighted sum of
rows of the states around pixel i, and M is no longer triangular.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vssm.analysis.columns import matrix_by_columns, steps
from vssm.analysis.frozen import transposed
from vssm.analysis.parts import NoSuchPart
from vssm.analysis.scans import BlockName, BlockScan, RouteScan, scan_of

__all__ = ["WEIGHTS", "linear_attention", "mixing_matrix", "mixing_rows", "scan_matrix"]

WEIGHTS = ("scan", "qk", "decayed_qk", "decay")
# Elements of float64 that the states of a chunk of queries may have: 64 MB.
CHUNK = 1 << 23
# Pixels up to which the whole matrix with fusion is computed by columns, all at once: 128 MB.
WHOLE = 4096
# Elements of one step below which the time of a loop goes into its steps, and doubling (log T passes) is faster.
NARROW = 256


def scan_matrix(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, weights: str = "scan") -> Tensor:
    """M (E, T, T) of one sequence, by the equation above, all at once: the form to read, and for tests.

    Args:
        dt: step sizes (T, E), after softplus.
        A: (E, N). B, C: (T, N). D: (E,), or None for no skip.
        weights: what stands in M, see `mixing_rows`.

    With A (1, N) in place of (E, N) and dt of one channel, the decay is one for all channels: gated linear attention,
    the special case that VMamba's appendix C names. With A = 0 it is linear attention, `linear_attention`.
    """
    _check_weights(weights)
    T = dt.shape[0]
    S = dt.cumsum(0).T[:, None]  # (E, 1, T)
    apart = (S[..., :, None] - S[..., None, :]) * A[:, :, None, None]  # (E, N, T, T)
    causal = torch.ones(T, T, dtype=torch.bool, device=dt.device).tril()
    w = torch.exp(apart.masked_fill(~causal, -torch.inf))
    if weights == "qk":
        w = causal.to(dt.dtype).expand_as(w)
    if weights == "decay":
        return w.sum(1)
    b = B.T[:, None] if weights != "scan" else (dt[:, None] * B[..., None]).permute(2, 1, 0)[:, :, None]
    M = (C.T[:, :, None] * w * b).sum(1)
    return M if D is None else M + torch.diag_embed(D[:, None].expand(-1, T))


def linear_attention(q: Tensor, k: Tensor, causal: bool = True, normalised: bool = False) -> Tensor:
    """q (T, N) and k (T, N) as the matrix (T, T) of linear attention, y = M v: the scan without decay.

    `normalised` divides every row by its sum, as attention does; for features q and k that are positive.
    """
    M = q @ k.T
    M = M.tril() if causal else M
    return M / M.sum(-1, keepdim=True) if normalised else M


def mixing_matrix(
    model: nn.Module,
    image: Tensor,
    block: BlockName | None = None,
    route: int | None = None,
    channel: int | None = None,
    weights: str = "scan",
    skip: bool = True,
    order: str = "image",
) -> Tensor:
    """M of one block on one image: what every pixel's output takes from every pixel.

    Args:
        model: a network of this package, in evaluation mode, or one that holds such a backbone.
        image: (3, H, W), prepared as the model expects it.
        block: number, or "stage.block"; see `vssm.analysis.scans`.
        route: one route; None: the sum of all, put back on the image.
        channel: one of the E channels that are scanned; None: the mean of all.
        weights, skip: see `mixing_rows`.
        order: "image": rows and columns are pixels in raster order; "route": in the order of a route (then lower
            triangular, without fusion).

    Returns:
        (L, L) in float64, L pixels of the map that is scanned (for Vim with its class token). With the defaults and a
        channel c, M u[c] is the output y[c] of the scan: `scan_of(model, image, block)` has u of every route, and y.

    Raises NoSuchPart for a block, route or channel that is not there, ValueError for other values, and for the cascade
    without a route: it scans twice with a norm between.

    Memory is that of one matrix, whatever the number of channels: `mixing_rows` gives a large one in parts.
    """
    if order not in ("image", "route"):
        raise ValueError(f"order must be 'image' or 'route', got {order!r}")
    scan = scan_of(model, image, block)
    if order == "route" and route is None:
        raise ValueError("order='route' is that of one route; give route, or order='image'")
    M = torch.cat(list(mixing_rows(scan, None, route, channel, weights, skip)))
    if order == "route":
        found = scan.routes[scan.find_route(route)]  # type: ignore[arg-type]
        M = M[found.writes.flatten()][:, found.reads.flatten()]
    return M


def mixing_rows(
    scan: BlockScan,
    queries: Sequence[int] | None = None,
    route: int | None = None,
    channel: int | None = None,
    weights: str = "scan",
    skip: bool = True,
    each_channel: bool = False,
) -> Iterator[Tensor]:
    """The rows of M for some pixels, a chunk of rows at a time.

    Args:
        scan: from `scan_of`.
        queries: raster positions; None for all.
        route, channel: as in `mixing_matrix`.
        weights: "scan": M itself, so that y = M u. The others are the papers' parts of it: "qk", Q K^T (as in linear
            attention), "decayed_qk", (Q . w)(K / w)^T, both to be multiplied with dt u, and "decay", w / w alone,
            summed over the states.
        skip: add D to the diagonal (of "scan" only).
        each_channel: a row for each of the E channels, in place of their mean.

    Yields:
        (queries, L), or (queries, E, L), in float64, in raster order.

    Without `queries`, a matrix with fusion or adaptors of up to WHOLE pixels comes at once, computed by columns.

    A row is the transposed scan of C at its pixel, run backwards in time: about T steps for a whole chunk of rows.
    """
    _check_weights(weights)
    numbers = range(len(scan.routes)) if route is None else [scan.find_route(route)]
    if route is None and scan.cascade:
        names = ", ".join(f"{i} ({found.name})" for i, found in enumerate(scan.routes))
        raise ValueError(f"the cascade scans rows, then columns, with a norm between, so choose a route: {names}")
    E, N = scan.routes[0].A.shape
    if channel is not None and not 0 <= channel < E:
        raise NoSuchPart(f"block {scan.name} scans {E} channels, 0 to {E - 1}; there is no channel {channel}")
    L = scan.size[0] * scan.size[1]
    if queries is None and scan.changed and not each_channel and L <= WHOLE:
        skip = skip and weights == "scan"
        yield matrix_by_columns(scan, numbers, route is None and skip, channel, weights, skip)
        return
    queries = range(L) if queries is None else queries
    wide = L * len(scan.routes) if scan.changed else 1
    step = max(1, CHUNK // (E * N * wide))
    for first in range(0, len(queries), step):
        chosen = torch.as_tensor(queries[first : first + step], device=scan.y.device)
        yield _rows(scan, chosen, numbers, route, channel, weights, skip and weights == "scan", each_channel)


def _rows(scan, chosen, numbers, route, channel, weights, skip, each_channel) -> Tensor:
    """(queries, L) or (queries, E, L): from the readout at each query back to what was scanned."""
    parts = [scan.routes[k] for k in numbers]
    if not scan.changed:
        rows = [_back_from_pixels(part, chosen, channel, weights, skip, each_channel) for part in parts]
        return torch.stack(rows).sum(0)
    E, L = scan.y.shape[0], scan.size[0] * scan.size[1]
    read = torch.zeros(len(chosen), E, L, dtype=scan.y.dtype, device=scan.y.device)
    read[torch.arange(len(chosen)), :, chosen] = 1  # row i of the identity, for every channel
    total = torch.zeros_like(read)
    if scan.direct is not None and route is None and skip:
        total += transposed(scan.direct, read.unflatten(-1, scan.size)).flatten(2)
    if scan.merged is not None:
        read = transposed(scan.merged, read.unflatten(-1, scan.size)).flatten(2)
    values = _before_fusion(scan, read, weights)
    for k, part in zip(numbers, parts, strict=True):
        total += _back_from_states(part, values[:, k], weights)
        if skip:
            total[..., part.reads[0]] += part.D[:, None] * read[..., part.writes[0]]
    if channel is not None:
        total = total[:, channel : channel + 1]
    return total if each_channel else total.mean(1)


def _before_fusion(scan: BlockScan, read: Tensor, weights: str) -> Tensor:
    """The transposed readout and fusion of every route: (queries, K, E, N, L)."""
    values = []
    for part in scan.routes:
        at = part.writes[0]
        C = torch.ones_like(part.C[0]) if weights == "decay" else part.C[0]
        value = torch.empty(*read.shape[:2], C.shape[1], read.shape[2], dtype=read.dtype, device=read.device)
        value[..., at] = read[:, :, None, at] * C.T
        values.append(value)
    stacked = torch.stack(values, 1)
    if scan.fused is None:
        return stacked
    return transposed(scan.fused, stacked.unflatten(-1, scan.size)).flatten(-2)


def _back_from_states(part: RouteScan, values: Tensor, weights: str) -> Tensor:
    """The transposed scan: z_t = v_t + exp(dt_{t+1} A) z_{t+1},  row_t = <b_t, z_t>;  v (queries, E, N, L)."""
    at = part.reads[0]
    decay, b = steps(part, 0, None, weights)
    values = values[..., at].permute(3, 0, 1, 2).contiguous()
    if values[0].numel() <= NARROW:
        row = (_doubled(values, decay[1:]) * b[:, None]).sum(-1)
    else:
        z = torch.zeros_like(values[0])
        row = torch.empty(len(at), *z.shape[:2], dtype=z.dtype, device=z.device)
        for t in reversed(range(len(at))):
            if t + 1 < len(at):
                z *= decay[t + 1]
            z += values[t]
            row[t] = (z * b[t]).sum(-1)
    found = torch.empty(*row.shape[1:], len(at), dtype=row.dtype, device=row.device)
    found[..., at] = row.permute(1, 2, 0)
    return found


def _doubled(z: Tensor, decay: Tensor) -> Tensor:
    """z_t + decay_t z_{t+1} + decay_t decay_{t+1} z_{t+2} + ...: z (T, queries, E, N), overwritten.

    decay is (T - 1, E, N). After a pass z_t has the terms of twice as many steps, and `decay` reaches twice as far.
    """
    reach = 1
    while reach < len(z):
        z[:-reach] += decay[:, None] * z[reach:]
        decay = decay[:-reach] * decay[reach:]
        reach *= 2
    return z


def _back_from_pixels(part: RouteScan, chosen: Tensor, channel, weights: str, skip: bool, each_channel: bool) -> Tensor:
    """The same where the states are read out as they are: v is C at one step, and a query needs no later ones."""
    (S, T), (E, N) = part.reads.shape, part.A.shape
    E = E if channel is None else 1
    if len(chosen) == 1:
        return _back_from_pixel(part, chosen, channel, weights, skip, each_channel)
    shape = (len(chosen), E, S * T) if each_channel else (len(chosen), S * T)
    rows = torch.zeros(shape, dtype=part.u.dtype, device=part.u.device)
    place = torch.empty(S * T, dtype=torch.long, device=part.u.device)
    place[part.writes.flatten()] = torch.arange(S * T, device=part.u.device)
    sequence, time = place[chosen] // T, place[chosen] % T
    for s in sequence.unique().tolist():
        decay, b = steps(part, s, channel, weights)
        mine = (sequence == s).nonzero()[:, 0]
        mine = mine[time[mine].argsort(descending=True)]
        starts = time[mine].tolist()
        z = torch.zeros(len(mine), E, N, dtype=rows.dtype, device=rows.device)
        row = torch.zeros(T, *shape[:-1], dtype=rows.dtype, device=rows.device)[:, : len(mine)]
        begun = 0
        for t in reversed(range(starts[0] + 1)):
            if begun and t + 1 < T:
                z[:begun] *= decay[t + 1]
            while begun < len(starts) and starts[begun] == t:
                z[begun] = 1 if weights == "decay" else part.C[s, t]
                begun += 1
            if each_channel:
                row[t, :begun] = (z[:begun] * b[t]).sum(-1)
            else:
                torch.mv(z[:begun].flatten(1), b[t].flatten(), out=row[t, :begun]).div_(E)
        reads = part.reads[s]
        rows[mine[:, None], ..., reads] = row.transpose(0, 1) if not each_channel else row.permute(1, 0, 2)
        if skip:
            D = part.D if channel is None else part.D[channel : channel + 1]
            at = part.reads[s, time[mine]]
            rows[mine, ..., at] += D if each_channel else D.mean()
    return rows


def _back_from_pixel(part: RouteScan, chosen: Tensor, channel, weights: str, skip: bool, each_channel: bool) -> Tensor:
    """The same for one query, in closed form: <C_i, exp(A (dt_{j+1} + ... + dt_i)) b_j>, without a loop."""
    s, t = (int(x) for x in (part.writes == chosen).nonzero()[0])
    channels = slice(None) if channel is None else slice(channel, channel + 1)
    _, b = steps(part, s, channel, weights)
    dt = part.dt[s, : t + 1, channels]
    apart = dt.flip(0).cumsum(0).flip(0) - dt
    w = torch.ones_like(b[: t + 1]) if weights == "qk" else torch.exp(apart[..., None] * part.A[channels])
    found = w * b[: t + 1]
    found = found.sum(-1) if weights == "decay" else found @ part.C[s, t]
    rows = torch.zeros(1, found.shape[1], part.reads.numel(), dtype=found.dtype, device=found.device)
    rows[0][:, part.reads[s, : t + 1]] = found.T
    if skip:
        rows[0, :, part.reads[s, t]] += part.D[channels]
    return rows if each_channel else rows.mean(1)


def _check_weights(weights: str) -> None:
    if weights not in WEIGHTS:
        raise ValueError(f"unknown weights {weights!r}: choose one of {', '.join(WEIGHTS)}")
