"""Activation maps: a row of a scan's matrix, put back on the image.

VMamba (arXiv 2401.10166), section 5.3, appendix D, figures 5, 8 and 9: what a query patch takes from the patches that
each route has visited before it. Spatial-Mamba (arXiv 2410.15091), figure 5, shows the same behind its fusion.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vssm.analysis.matrices import mixing_rows
from vssm.analysis.scans import BlockName, BlockScan, scan_of

__all__ = [
    "ActivationMaps",
    "activation_map",
    "activation_of",
    "diagonal_map",
    "diagonal_of",
    "normalise",
    "without_adaptors",
]


@dataclass(frozen=True)
class ActivationMaps:
    """Attributes:
    block: its name.
    query: row and column of the query patch; None for maps of the diagonal, which every patch has its value in.
    names: of the routes.
    routes: (K, rows, columns), float64.
    combined: (rows, columns), the sum of the routes; for the cascade None.
    """

    block: str
    query: tuple[int, int] | None
    names: tuple[str, ...]
    routes: Tensor
    combined: Tensor | None


def activation_map(
    model: nn.Module,
    image: Tensor,
    query: tuple[int, int] | None = None,
    block: BlockName | None = None,
    weights: str = "decayed_qk",
    channel: int | None = None,
    skip: bool = False,
) -> ActivationMaps:
    """What the query patch takes from every patch, per route and combined.

    Args:
        model, image, block, channel: as in `vssm.analysis.mixing_matrix`.
        query: row and column of the map that the block works on; None for its centre.
        weights: "qk": Q K^T; "decayed_qk": (Q . w)(K / w)^T, the papers' two; "scan": what the scan really weighs, with
            dt; "decay": w alone.
        skip: add D at the query itself (of "scan" only).

    NoSuchPart for a query, block or channel that is not there, with the valid choices.
    """
    return activation_of(scan_of(model, image, block), query, weights, channel, skip)


def activation_of(
    scan: BlockScan,
    query: tuple[int, int] | None = None,
    weights: str = "decayed_qk",
    channel: int | None = None,
    skip: bool = False,
) -> ActivationMaps:
    """`activation_map` for a scan that was read already."""
    query = (scan.grid[0] // 2, scan.grid[1] // 2) if query is None else query
    at = scan.position(query)
    rows = [next(mixing_rows(scan, [at], k, channel, weights, skip))[0] for k in range(len(scan.routes))]
    if scan.cascade:
        combined = None
    elif scan.direct is None:
        combined = torch.stack(rows).sum(0)
    else:  # what a parallel adaptor_s adds is no part of a route
        combined = next(mixing_rows(scan, [at], None, channel, weights, skip))[0]
    return _maps(scan, query, rows, combined)


def diagonal_map(
    model: nn.Module,
    image: Tensor,
    block: BlockName | None = None,
    weights: str = "decayed_qk",
    channel: int | None = None,
    skip: bool = False,
) -> ActivationMaps:
    """The diagonals of the matrices, put back on the image: what every patch takes from itself (figures 8 and 9).

    Without fusion the decay has no part in it, and "qk" and "decayed_qk" are the same.
    """
    return diagonal_of(scan_of(model, image, block), weights, channel, skip)


def diagonal_of(
    scan: BlockScan, weights: str = "decayed_qk", channel: int | None = None, skip: bool = False
) -> ActivationMaps:
    """`diagonal_map` for a scan that was read already."""
    rows = [_diagonal(mixing_rows(scan, None, k, channel, weights, skip)) for k in range(len(scan.routes))]
    combined = None if scan.cascade else _diagonal(mixing_rows(scan, None, None, channel, weights, skip))
    return _maps(scan, None, rows, combined)


def _diagonal(chunks: Iterable[Tensor]) -> Tensor:
    found, first = [], 0
    for chunk in chunks:
        found.append(chunk.diagonal(first))
        first += len(chunk)
    return torch.cat(found)


def _maps(scan: BlockScan, query, rows: list[Tensor], combined: Tensor | None) -> ActivationMaps:
    names = tuple(part.name for part in scan.routes)
    whole = None if combined is None else scan.on_image(combined)
    return ActivationMaps(scan.name, query, names, scan.on_image(torch.stack(rows)), whole)


def normalise(x: Tensor, kind: str = "minmax") -> Tensor:
    """A matrix or map on a scale of 1, as the official figures have it: "minmax", from the least to the largest, or
    "abs", |x| over the largest |x|. Zeros where all values are alike."""
    if kind == "abs":
        x, low = x.abs(), x.new_zeros(())
    elif kind == "minmax":
        low = x.min()
    else:
        raise ValueError(f"unknown normalisation {kind!r}: choose 'minmax' or 'abs'")
    span = x.max() - low
    return torch.where(span > 0, (x - low) / span.clamp_min(torch.finfo(x.dtype).tiny), torch.zeros_like(x))


def without_adaptors(scan: BlockScan) -> BlockScan:
    """The same scan read out as it is: no fusion, no adaptors."""
    return replace(scan, fused=None, merged=None, direct=None)
