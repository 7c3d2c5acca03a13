"""The hidden states of a scan as maps, and how far they remember.

State maps: Spatial-Mamba (arXiv 2410.15091), figure 3 and appendix figure 1. Decay: Mamba-Adaptor (arXiv 2505.12685),
supplement 4.1 and 4.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vssm.analysis.activation import without_adaptors
from vssm.analysis.matrices import mixing_rows
from vssm.analysis.parts import NoSuchPart
from vssm.analysis.scans import BlockName, BlockScan, scan_of

__all__ = ["MemoryDecay", "StateMaps", "decay_of", "memory_decay", "state_maps", "states_of", "time_invariant_kernel"]


@dataclass(frozen=True)
class StateMaps:
    """States on the patches of the image, float64.

    Attributes:
        block: its name. names: of the K routes.
        before: (K, E, N, rows, columns) as the scan computes them.
        after: the same, as they are read out: behind the fusion and Adaptor-T. Equal to `before` without either.
    """

    block: str
    names: tuple[str, ...]
    before: Tensor
    after: Tensor

    def mean(self) -> tuple[Tensor, Tensor]:
        """Both averaged over channels and states, (K, rows, columns) each: what the paper's figure shows."""
        return self.before.mean((1, 2)), self.after.mean((1, 2))

    def channel(self, channel: int) -> tuple[Tensor, Tensor]:
        """Both of one channel, averaged over its states, (K, rows, columns) each. NoSuchPart with the valid choices."""
        channels = self.before.shape[1]
        if not 0 <= channel < channels:
            raise NoSuchPart(f"there is no channel {channel}: block {self.block} has 0 to {channels - 1}")
        return self.before[:, channel].mean(1), self.after[:, channel].mean(1)


def state_maps(model: nn.Module, image: Tensor, block: BlockName | None = None) -> StateMaps:
    """The states of one block on one image, before and after fusion. Arguments and errors as `mixing_matrix`;
    ValueError for the cascade scan, whose states are on no common grid."""
    return states_of(scan_of(model, image, block))


def states_of(scan: BlockScan) -> StateMaps:
    """`state_maps` for a scan that was read already."""
    if scan.cascade:
        raise ValueError("the cascade scan has no states on one grid; look at models with another scan")
    names = tuple(part.name for part in scan.routes)
    return StateMaps(scan.name, names, *(scan.on_image(h.flatten(-2)) for h in (scan.before, scan.after)))


@dataclass(frozen=True)
class MemoryDecay:
    """Mean |weight| of a pixel in another one's output, by distance, for each of the K routes; at distance 0 it is 1.

    Attributes:
        names: of the routes.
        steps: (K, T) by steps of the route.
        along, across: (K, D) by pixels in the line that the route walks, and from line to line.
    """

    names: tuple[str, ...]
    steps: Tensor
    along: Tensor
    across: Tensor


def memory_decay(
    model: nn.Module, image: Tensor, block: BlockName | None = None, adaptors: bool = True, weights: str = "scan"
) -> MemoryDecay:
    """How the weight of a pixel falls with its distance.

    A scan forgets by exp(dt A) at every step, so that the pixel above is a whole row of steps away; fusion and
    adaptors read states from around, at any distance along the route.

    Args:
        model, image, block: as in `vssm.analysis.mixing_matrix`; not the cascade, and no class token.
        adaptors: False reads the states out without fusion and adaptors.
        weights: what is weighed, see `vssm.analysis.mixing_rows`; the skip D has no part in it.
    """
    scan = scan_of(model, image, block)
    return decay_of(scan if adaptors else without_adaptors(scan), weights=weights)


def decay_of(scan: BlockScan, route: int | None = None, weights: str = "scan") -> MemoryDecay:
    """`memory_decay` for a scan that was read already; of one route (then K = 1), or of all."""
    if scan.cascade or scan.class_token is not None:
        raise ValueError("distances need every route on the image's grid: not the cascade scan, and no class token")
    routes = range(len(scan.routes)) if route is None else [scan.find_route(route)]
    found = [_decay(scan, k, weights) for k in routes]
    return MemoryDecay(tuple(scan.routes[k].name for k in routes), *(torch.stack(x) for x in zip(*found, strict=True)))


def _decay(scan: BlockScan, k: int, weights: str) -> tuple[Tensor, Tensor, Tensor]:
    """Means by steps, along and across, of one route."""
    (height, width), part = scan.size, scan.routes[k]
    L, rows_first = height * width, part.name.startswith("rows")
    time = torch.empty(L, dtype=torch.long, device=scan.y.device)
    time[part.reads[0]] = torch.arange(L, device=scan.y.device)
    y, x = torch.arange(L, device=scan.y.device) // width, torch.arange(L, device=scan.y.device) % width
    line, place = (y, x) if rows_first else (x, y)
    reach = max(height, width)
    sums = [torch.zeros(2, n, dtype=torch.float64, device=scan.y.device) for n in (L, reach, reach)]
    first = 0
    for chunk in mixing_rows(scan, None, k, None, weights, skip=False, each_channel=True):
        size = chunk.abs().mean(1)
        q = torch.arange(first, first + len(size), device=size.device)
        first += len(size)
        behind = time[q, None] - time
        pairs = (
            (behind, behind >= 0),
            ((place[q, None] - place).abs(), (line[q, None] == line) & (behind >= 0)),
            ((line[q, None] - line).abs(), (place[q, None] == place) & (behind >= 0)),
        )
        for total, (distance, valid) in zip(sums, pairs, strict=True):
            total[0].index_add_(0, distance[valid], size[valid])
            total[1].index_add_(0, distance[valid], torch.ones_like(size[valid]))
    means = [total[0] / total[1].clamp_min(1) for total in sums]
    return tuple(mean / mean[0] for mean in means)  # type: ignore[return-value]


def time_invariant_kernel(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """(C b, C a b, C a^2 b, ...): the kernel of an SSM whose dt, B and C are constant; y = u * kernel.

    Mamba-Adaptor's supplement, equation 1; a = exp(dt A), b = dt B. dt (E,), A (E, N), B and C (N,); (E, length).
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    steps = torch.arange(length, dtype=dt.dtype, device=dt.device)
    powers = torch.exp(dt[:, None, None] * A[..., None] * steps)  # (E, N, length)
    return (C[:, None] * powers * (dt[:, None] * B)[..., None]).sum(1)
