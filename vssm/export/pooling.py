"""Adaptive average pooling as two weighted sums, which stay right when height and width are free.

Matrix products would do as well, but torch.export cannot prove that a free side is not 1, which they ask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

__all__ = ["adaptive_average", "exact_pooling"]


def adaptive_average(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """`F.adaptive_avg_pool2d`: (B, C, H, W) -> (B, C, *cells)."""
    height, width = (_means(size, count, x) for size, count in zip(x.shape[-2:], cells, strict=True))
    x = (x.unsqueeze(3) * width).sum(-1)  # (B, C, H, cells)
    return (x.unsqueeze(2) * height[:, :, None]).sum(3)


def _means(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size): row i averages the elements from floor(i size / cells) to ceil((i + 1) size / cells)."""
    cell, place = torch.arange(cells, device=like.device), torch.arange(size, device=like.device)
    first, end = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
    inside = (place >= first[:, None]) & (place < end[:, None])
    return inside.to(like.dtype) / (end - first)[:, None].to(like.dtype)


@contextmanager
def exact_pooling(network: nn.Module) -> Iterator[None]:
    """Inside, every nn.AdaptiveAvgPool2d of the network is computed so: torch's ONNX exporter writes out its cells at
    the size of the trace, and other sizes then fail."""
    pools = [module for module in network.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
    try:
        for pool in pools:
            size = pool.output_size
            height, width = size if isinstance(size, tuple) else (size, size)
            if height is not None and width is not None:
                vars(pool)["forward"] = partial(adaptive_average, cells=(height, width))
        yield
    finally:
        for pool in pools:
            vars(pool).pop("forward", None)
