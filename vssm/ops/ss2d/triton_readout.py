"""The readout of states on Triton, y = sum_kn C_kn h_kn + skip x: one pass over h, channels-last. No autograd.

Arithmetic is float32. A program goes through the channels of its pixels, so that the gradients of C are whole; those of
the skip are sums over pixels, one part per program, added in a fixed order. state_fusion/triton.py takes the same
gradients for what it fused.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

import torch
import triton
import triton.language as tl
from torch import Tensor

from vssm.ops import gpu
from vssm.ops.tensors import channels_last, empty_map


@triton.jit
def read_out(
    h,  # (B, terms, pixels of a map, E); y and x (B, pixels of a map, E)
    C,  # (B, terms, pixels of a map)
    x,  # or None, with skip (E)
    skip,
    y,
    pixels,  # of all maps
    size,  # pixels of a map
    terms,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (pixels of all maps, channels): y."""
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    exists, has = p < pixels, c < CHANNELS
    valid = exists[:, None] & has[None, :]
    total = tl.zeros((P, BC), tl.float32)
    at = p + p // size * (terms - 1) * size  # a pixel's index among those of its first term
    for _ in range(terms):
        value = tl.load(h + at[:, None] * CHANNELS + c[None, :], mask=valid, other=0.0).to(tl.float32)
        total += value * tl.load(C + at, mask=exists, other=0.0).to(tl.float32)[:, None]
        at += size
    to = p[:, None] * CHANNELS + c[None, :]
    if x is not None:
        value = tl.load(x + to, mask=valid, other=0.0).to(tl.float32)
        total += value * tl.load(skip + c, mask=has, other=0.0).to(tl.float32)[None, :]
    tl.store(y + to, total, mask=valid)


@triton.jit
def term_gradients(
    g,  # like y
    h,
    C,
    dh,  # or None
    dC,
    pixels,
    size,
    terms,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (pixels of all maps and term): dh and dC. Terms are neighbours, which finds g in the cache."""
    p = (tl.program_id(0) // terms).to(tl.int64) * P + tl.arange(0, P)
    exists = p < pixels
    at = p + (p // size * (terms - 1) + tl.program_id(0) % terms) * size
    weight = tl.load(C + at, mask=exists, other=0.0).to(tl.float32)
    total = tl.zeros((P, BC), tl.float32)
    for first in range(0, CHANNELS, BC):
        c = first + tl.arange(0, BC)
        valid = exists[:, None] & (c < CHANNELS)[None, :]
        value = tl.load(g + p[:, None] * CHANNELS + c[None, :], mask=valid, other=0.0).to(tl.float32)
        to = at[:, None] * CHANNELS + c[None, :]
        total += value * tl.load(h + to, mask=valid, other=0.0).to(tl.float32)
        if dh is not None:
            tl.store(dh + to, value * weight[:, None], mask=valid)
    tl.store(dC + at, tl.sum(total, 1), mask=exists)


@triton.jit
def skip_gradients(
    g,
    x,
    skip,
    dx,
    dskip,  # (programs, E)
    pixels,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (share of the pixels, channels): dx, and the sum of g x."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < CHANNELS
    weight = tl.load(skip + c, mask=has, other=0.0).to(tl.float32)
    total = tl.zeros((P, BC), tl.float32)
    for item in range(tl.program_id(0), tl.cdiv(pixels, P), tl.num_programs(0)):
        p = tl.cast(item, tl.int64) * P + tl.arange(0, P)
        valid = (p < pixels)[:, None] & has[None, :]
        at = p[:, None] * CHANNELS + c[None, :]
        value = tl.load(g + at, mask=valid, other=0.0).to(tl.float32)
        total += value * tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
        tl.store(dx + at, value * weight[None, :], mask=valid)
    tl.store(dskip + tl.program_id(0) * CHANNELS + c, tl.sum(total, 0), mask=has)


def _states(h: Tensor) -> Tensor:
    """(B, K, N, H, W, E), contiguous: how `ss2d_states` writes them."""
    return h.permute(0, 1, 3, 4, 5, 2).contiguous()


def forward(h: Tensor, C: Tensor, x: Tensor | None, skip: Tensor | None) -> Tensor:
    """y (B, E, H, W) like h, in channels_last memory. h (B, K, E, N, H, W), C (B, K, N, H, W), x (B, E, H, W), skip
    (E,); the last two both or neither."""
    h, C = _states(h), C.contiguous()
    batch, K, N, height, width, channels = h.shape
    y = h.new_empty((batch, height, width, channels))
    tile = gpu.map_tile(y.numel(), channels)
    x, skip = (None, None) if x is None or skip is None else (channels_last(x), skip.contiguous())
    given = {"h": h, "C": C, "x": x, "skip": skip, "y": y, "size": height * width, "terms": K * N}
    gpu.launch(read_out, gpu.map_grid(tile), h.device, **given, **tile)
    return y.permute(0, 3, 1, 2)


def backward(g: Tensor, h: Tensor, C: Tensor, x: Tensor | None, skip: Tensor | None) -> tuple[Tensor | None, ...]:
    """dh in the memory that `ss2d_states` writes, dC, dx, dskip."""
    g, h = channels_last(g), _states(h)
    dh = torch.empty_like(h)
    dC = gradient_of_weights(g, h, C, dh)
    dx, dskip = (None, None) if x is None or skip is None else skip_backward(g, x, skip)
    return dh.permute(0, 1, 5, 2, 3, 4), dC, dx, dskip


def gradient_of_weights(g: Tensor, states: Tensor, C: Tensor, dstates: Tensor | None = None) -> Tensor:
    """dC for g (B, E, H, W) in channels_last memory and contiguous states (B, K, N, H, W, E), whose gradient is written
    where there is room for it."""
    C = C.contiguous()
    batch, K, N, height, width, channels = states.shape
    dC, tile = torch.empty_like(C), gpu.map_tile(g.numel(), channels)
    grid = gpu.map_grid(tile)[0] * K * N, 1, 1
    given = {"g": g, "h": states, "C": C, "dh": dstates, "dC": dC, "size": height * width, "terms": K * N}
    gpu.launch(term_gradients, grid, g.device, **given, **tile)
    return dC


def skip_backward(g: Tensor, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """dx (channels_last memory), dskip of skip x: maps (B, E, H, W), skip (E,)."""
    g, x = channels_last(g), channels_last(x)
    dx, tile = empty_map(x), gpu.map_tile(x.numel(), x.shape[1])
    grid = gpu.map_grid(tile, shared=True)
    parts = g.new_empty((grid[0], x.shape[1]), dtype=torch.float32)
    given = {"g": g, "x": x, "skip": skip.contiguous(), "dx": dx, "dskip": parts}
    gpu.launch(skip_gradients, grid, x.device, **given, **tile)
    return dx, parts.sum(0)
