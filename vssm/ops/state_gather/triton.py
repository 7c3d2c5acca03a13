"""Sampling of states on Triton: channels contiguous, the sampling points of a pixel shared by all of them. No autograd.

Arithmetic is float32. The gradient of the states is scattered: pixels whose points meet add to the same state. Sums of
floats depend on their order, so they are added as 64-bit integers of a common scale, whose sums do not: the same bits
every time, at a precision beyond that of float32.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vssm.ops import gpu
from vssm.ops.tensors import dense

PIXELS = 16


@triton.jit
def pixels_of_program(pixels, blocks, P: tl.constexpr):
    """(map, its pixels, which of them exist) of a program."""
    p = (tl.program_id(0) % blocks) * P + tl.arange(0, P)
    return (tl.program_id(0) // blocks).to(tl.int64), p, p < pixels


@triton.jit
def sampling_point(offsets, weights, m, k, p, exists, pixels, height, width, K: tl.constexpr):
    """Sampling point k of pixels p of map m: rows, columns, their weight, and whether it is near the map at all."""
    at = (m * K + k) * pixels + p
    y = (p // width).to(tl.float32) + tl.load(offsets + (m * K + k) * 2 * pixels + p, mask=exists, other=0.0)
    x = (p % width).to(tl.float32) + tl.load(offsets + ((m * K + k) * 2 + 1) * pixels + p, mask=exists, other=0.0)
    weight = tl.load(weights + at, mask=exists, other=0.0)
    near = exists & (y >= -1.0) & (y < height) & (x >= -1.0) & (x < width)
    return tl.where(near, y, 0.0), tl.where(near, x, 0.0), weight, near


@triton.jit
def neighbour(y, x, near, height, width, i: tl.constexpr):
    """Neighbour i of a sampling point: its pixel, its bilinear share, and whether it is on the map."""
    top, left = tl.floor(y), tl.floor(x)
    row, column = top.to(tl.int32) + i // 2, left.to(tl.int32) + i % 2
    fy, fx = y - top, x - left
    share = (fy if i // 2 else 1.0 - fy) * (fx if i % 2 else 1.0 - fx)
    inside = near & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return (row * width + column).to(tl.int64), share, inside


@triton.jit
def gather_states(
    h,  # (maps, states, pixels, C), float32 or half; y likewise in float32
    offsets,  # (maps, K, 2, pixels), float32
    weights,  # (maps, K, pixels), float32
    y,
    pixels,
    blocks,
    height,
    width,
    states,
    K: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (map and block of its pixels, channels): y."""
    m, p, exists = pixels_of_program(pixels, blocks, P)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < C
    for n in range(states):
        base = (m * states + n) * pixels * C
        total = tl.zeros((P, BC), tl.float32)
        for k in range(K):
            row, column, weight, near = sampling_point(offsets, weights, m, k, p, exists, pixels, height, width, K)
            for i in tl.static_range(4):
                at, share, inside = neighbour(row, column, near, height, width, i)
                seen = tl.load(
                    h + base + at[:, None] * C + c[None, :], mask=inside[:, None] & has[None, :], other=0.0
                ).to(tl.float32)
                total += tl.where(inside, weight * share, 0.0)[:, None] * seen
        tl.store(y + base + p[:, None] * C + c[None, :], total, mask=exists[:, None] & has[None, :])


@triton.jit
def point_gradients(
    gy,  # like h
    h,
    offsets,
    weights,
    doffsets,
    dweights,
    pixels,
    blocks,
    height,
    width,
    states,
    K: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (map and block of its pixels, point): the gradients of its offset and of its weight."""
    m, p, exists = pixels_of_program(pixels, blocks, P)
    k = tl.program_id(1)
    row, column, weight, near = sampling_point(offsets, weights, m, k, p, exists, pixels, height, width, K)
    sampled, down, right = tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32)
    fy, fx = row - tl.floor(row), column - tl.floor(column)
    for i in tl.static_range(4):
        at, share, inside = neighbour(row, column, near, height, width, i)
        dot = tl.zeros((P,), tl.float32)
        for n in range(states):
            base = (m * states + n) * pixels * C
            for first in range(0, C, BC):
                c = first + tl.arange(0, BC)
                has = c < C
                g = tl.load(gy + base + p[:, None] * C + c[None, :], mask=exists[:, None] & has[None, :], other=0.0).to(
                    tl.float32
                )
                seen = tl.load(
                    h + base + at[:, None] * C + c[None, :], mask=inside[:, None] & has[None, :], other=0.0
                ).to(tl.float32)
                dot += tl.sum(g * seen, 1)
        sampled += tl.where(inside, share * dot, 0.0)
        down += (1.0 if i // 2 else -1.0) * (fx if i % 2 else 1.0 - fx) * dot
        right += (1.0 if i % 2 else -1.0) * (fy if i // 2 else 1.0 - fy) * dot
    tl.store(dweights + (m * K + k) * pixels + p, sampled, mask=exists)
    tl.store(doffsets + (m * K + k) * 2 * pixels + p, weight * down, mask=exists)
    tl.store(doffsets + ((m * K + k) * 2 + 1) * pixels + p, weight * right, mask=exists)


@triton.jit
def scatter(
    gy,
    offsets,
    weights,
    scale,  # one element, a power of two
    dh,  # like h, int64, zeros
    pixels,
    blocks,
    height,
    width,
    states,
    K: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (map and block of its pixels, channels): adds each pixel's gradient to the states that it saw."""
    m, p, exists = pixels_of_program(pixels, blocks, P)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < C
    to_integer = tl.load(scale)
    for n in range(states):
        base = (m * states + n) * pixels * C
        g = tl.load(gy + base + p[:, None] * C + c[None, :], mask=exists[:, None] & has[None, :], other=0.0)
        g = g.to(tl.float32) * to_integer
        for k in range(K):
            row, column, weight, near = sampling_point(offsets, weights, m, k, p, exists, pixels, height, width, K)
            for i in tl.static_range(4):
                at, share, inside = neighbour(row, column, near, height, width, i)
                value = (g * (weight * share)[:, None]).to(tl.int64)
                mask = inside[:, None] & has[None, :]
                tl.atomic_add(dh + base + at[:, None] * C + c[None, :], value, mask=mask, sem="relaxed")


def _states(h: Tensor) -> Tensor:
    """(B, S, N, H, W, C), contiguous."""
    return h.permute(0, 1, 3, 4, 5, 2).contiguous()


def _tile(h: Tensor, weights: Tensor) -> dict[str, Any]:
    batch, sequences, states, height, width, channels = h.shape
    pixels = height * width
    return {
        "pixels": pixels,
        "blocks": -(-pixels // PIXELS),
        "height": height,
        "width": width,
        "states": states,
        "K": weights.shape[2],
        "C": channels,
        "P": PIXELS,
        "BC": gpu.channel_block(channels),
    }


def _grid(h: Tensor, tile: dict[str, Any]) -> tuple[int, int, int]:
    return h.shape[0] * h.shape[1] * tile["blocks"], -(-tile["C"] // tile["BC"]), 1


def forward(h: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """See the public function."""
    h, offsets, weights = _states(h), dense(offsets, torch.float32), dense(weights, torch.float32)
    y, tile = h.new_empty(h.shape, dtype=torch.float32), _tile(h, weights)
    if h.numel() > 0:
        gpu.launch(gather_states, _grid(h, tile), h.device, h=h, offsets=offsets, weights=weights, y=y, **tile)
    return y.permute(0, 1, 5, 2, 3, 4)


def backward(gy: Tensor, h: Tensor, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dh, doffsets, dweights in float32."""
    gy, h = _states(gy), _states(h)
    offsets, weights = dense(offsets, torch.float32), dense(weights, torch.float32)
    doffsets, dweights = torch.empty_like(offsets), torch.empty_like(weights)
    dh = h.new_zeros(h.shape, dtype=torch.int64)
    if h.numel() == 0:
        return dh.float().permute(0, 1, 5, 2, 3, 4), doffsets, dweights
    tile = _tile(h, weights)
    shared = {"gy": gy, "offsets": offsets, "weights": weights}
    blocks, groups, _ = _grid(h, tile)
    grads = {"doffsets": doffsets, "dweights": dweights}
    gpu.launch(point_gradients, (blocks, tile["K"], 1), h.device, h=h, **shared, **grads, **tile)
    scale = _scale(gy, weights, tile)
    gpu.launch(scatter, (blocks, groups, 1), h.device, scale=scale, dh=dh, **shared, **tile)
    return (dh.float() / scale).permute(0, 1, 5, 2, 3, 4), doffsets, dweights


def _scale(gy: Tensor, weights: Tensor, tile: dict[str, Any]) -> Tensor:
    """The power of two by which the largest sum that is possible stays below 2^62; NaN where a gradient is NaN,
    which then shows in all of them. Computed on the device: nothing waits for it."""
    largest = gy.abs().amax().float() * weights.abs().amax()
    room = 62 - math.ceil(math.log2(4 * tile["K"] * tile["pixels"]))
    exponent = (room - largest.log2().ceil()).clamp(-120, 120)
    return torch.where(largest.isfinite(), exponent.exp2(), torch.nan)
