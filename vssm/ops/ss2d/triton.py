"""SS2D on Triton: the scan's kernels (selective_scan/triton_*.py) on channels-last maps and raster projections.

dt projection, softplus, scan, readout and the merge of the routes along the same walk, there and back, happen in one
kernel; the other walk adds to its result. Whatever the direction, a program reads pixels of BC neighbouring channels.
Everything is computed in float32; every gradient has the dtype of its input. No autograd.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from vssm.ops import gpu, tuning
from vssm.ops.routes import decode
from vssm.ops.selective_scan.triton import Geometry, Inputs, Walk, run_forward, run_gradients, run_state_passing
from vssm.ops.tensors import dense
from vssm.ops.tuning import Tile


def _walks(routes: list[int], height: int, width: int) -> tuple[Walk, ...]:
    """The walks that the routes take: rows, columns or both, the direction of the first route first."""
    taken: dict[str, list[tuple[int, bool]]] = {}
    for k, (direction, step) in enumerate(decode(routes)):
        # In a map of one row the columns follow each other as its pixels do.
        taken.setdefault("rows" if height == 1 else direction, []).append((k, step < 0))
    return tuple(
        Walk(direction == "columns", height, width, tuple(k for k, _ in by), tuple(back for _, back in by))
        for direction, by in taken.items()
    )


def _tuned(kind: str, x: Tensor, dt_weight: Tensor, A: Tensor, run: Callable[[Tile], Any]) -> Any:
    """What `run` gives with the best tile for such sizes."""
    batch, channels, height, width = x.shape
    K, _, R = dt_weight.shape
    gpu.check_scan_fits(A.shape[1], R)
    samples, pixels = tuning.size_class(batch), tuning.size_class(height * width)
    sizes = f"C={channels} K={K} R={R} N={A.shape[1]} samples<=2^{samples} pixels<=2^{pixels}"
    key = f"{kind} triton={triton.__version__} {x.dtype} {sizes}"
    with gpu.current(x.device):
        tiles = gpu.scan_tiles(channels, R, kind.endswith("backward"))
        return run(tuning.choose(key, x.device, tiles, run))


def _geometry(x: Tensor, dt_weight: Tensor, A: Tensor, routes: list[int], tile: Tile) -> Geometry:
    batch, channels, height, width = x.shape
    K, _, R = dt_weight.shape
    N, length = A.shape[1], height * width
    row = R + 2 * N
    return Geometry(
        batch=batch,
        K=K,
        channels=channels,
        length=length,
        rank=R,
        state=N,
        softplus=True,
        maps=(length * channels, 0, 1),
        rows=(length * K * row, row, 1),
        states=(K * N * length * channels, N * length * channels, length * channels, 1),
        steps=(channels, K * row, channels),
        walks=_walks(routes, height, width),
        separate=False,
        T=tile[0],
        BC=tile[1],
    )


def _inputs(x, proj, dt_weight, dt_bias, A, D) -> Inputs:
    # Every thread reads the rows of its pixels: a conversion once is cheaper than one in each of them.
    return Inputs(
        u=gpu.map_rows(x),
        low=proj.float().contiguous(),
        A=dense(A, torch.float32),
        D=dense(D, torch.float32),
        weight=dense(dt_weight, torch.float32),
        bias=dense(dt_bias, torch.float32),
    )


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W) in channels_last memory."""
    return rows.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def forward(x, proj, dt_weight, dt_bias, A, D, routes: list[int]) -> Tensor:
    """y (B, C, H, W) in channels_last memory, float32."""
    inputs = _inputs(x, proj, dt_weight, dt_bias, A, D)

    def run(tile: Tile) -> Tensor:
        g = _geometry(x, dt_weight, A, routes, tile)
        y = torch.empty_like(inputs.u, dtype=torch.float32)
        run_forward(g, inputs, y)
        return _as_map(y, x)

    return _tuned("ss2d", x, dt_weight, A, run)


def states_forward(x, proj, dt_weight, dt_bias, A, routes: list[int]) -> Tensor:
    """h (B, K, C, N, H, W), whose memory is (B, K, N, H, W, C), float32."""
    inputs = _inputs(x, proj, dt_weight, dt_bias, A, None)

    def run(tile: Tile) -> Tensor:
        g = _geometry(x, dt_weight, A, routes, tile)
        h = x.new_empty((g.batch, g.K, g.state, *x.shape[2:], g.channels), dtype=torch.float32)
        run_forward(g, inputs, states=h)
        return h.permute(0, 1, 5, 2, 3, 4)

    return _tuned("ss2d_states", x, dt_weight, A, run)


def backward(gy, x, proj, dt_weight, dt_bias, A, D, routes: list[int]) -> tuple[Tensor | None, ...]:
    """(dx, dproj, ddt_weight, ddt_bias, dA, dD); dD is None when D is."""
    return _gradients("ss2d_backward", x, proj, dt_weight, dt_bias, A, D, routes, gy=gpu.map_rows(gy))


def states_backward(gh, x, proj, dt_weight, dt_bias, A, routes: list[int]) -> tuple[Tensor | None, ...]:
    """(dx, dproj, ddt_weight, ddt_bias, dA) given gh (B, K, C, N, H, W)."""
    gstates = gh.permute(0, 1, 3, 4, 5, 2).contiguous()
    kind = "ss2d_states_backward"
    return _gradients(kind, x, proj, dt_weight, dt_bias, A, None, routes, gstates=gstates)[:-1]


def _gradients(kind, x, proj, dt_weight, dt_bias, A, D, routes, **incoming) -> tuple[Tensor | None, ...]:
    inputs = _inputs(x, proj, dt_weight, dt_bias, A, D)

    def run(tile: Tile) -> tuple[Tensor | None, ...]:
        g = _geometry(x, dt_weight, A, routes, tile)
        entering, arriving = (None, None) if g.tiles == 1 else run_state_passing(g, inputs, **incoming)
        # Without a readout C has no gradient, and nobody writes its part.
        readout = "gy" in incoming
        new = x.new_empty if readout else x.new_zeros
        parts = new((g.channel_tiles, proj.numel()), dtype=torch.float32)
        grads = run_gradients(g, inputs, entering, arriving, parts, g.rows, **incoming)
        weights = (grads["dweight"], grads["dbias"], grads["dA"], grads.get("dD"))
        return _as_map(grads["du"], x), parts.sum(0), *weights

    return _tuned(kind, x, dt_weight, A, run)
