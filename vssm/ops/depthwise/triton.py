"""Depthwise convolutions on Triton: channels contiguous, bias, SiLU and residual in one pass. No autograd.

`convolve` and `convolve_gradients` take any list of taps, each an offset in rows and columns; sequences are maps of one
row (causal_conv1d/triton.py). torch would convert a half precision map to float32, convolve, activate, add and convert
back, a pass over memory each. Arithmetic is float32. The backward computes the value before the activation again, and
with it the sums over pixels of the weights' gradients, one part per program; parts are added in a fixed order, without
atomics.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

import torch
import triton
import triton.language as tl
from torch import Tensor

from vssm.ops import gpu
from vssm.ops.tensors import channels_last, dense, empty_map

Taps = tuple[int, ...]  # row and column of one tap after the other, relative to the pixel

SQUARE: Taps = (-1, -1, -1, 0, -1, 1, 0, -1, 0, 0, 0, 1, 1, -1, 1, 0, 1, 1)


@triton.jit
def seen_by_tap(x, p, c, row, column, height, width, valid, dy: tl.constexpr, dx: tl.constexpr, CHANNELS: tl.constexpr):
    """What a tap sees from pixels p: zeros outside of the map."""
    inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
    at = (p + dy * width + dx)[:, None] * CHANNELS + c[None, :]
    return tl.load(x + at, mask=valid & inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def before_activation(
    x, weight, bias, p, c, row, column, height, width, valid, has, TAPS: tl.constexpr, CHANNELS: tl.constexpr
):
    """bias + sum_j weight_j x(p + tap_j), (P, BC)."""
    z = tl.zeros(valid.shape, tl.float32)
    for j in tl.static_range(len(TAPS) // 2):
        seen = seen_by_tap(x, p, c, row, column, height, width, valid, TAPS[2 * j], TAPS[2 * j + 1], CHANNELS)
        z += seen * tl.load(weight + j * CHANNELS + c, mask=has, other=0.0)[None, :]
    if bias is not None:
        z += tl.load(bias + c, mask=has, other=0.0)[None, :]
    return z


@triton.jit
def convolve(
    x,
    weight,  # (taps, C), float32
    bias,  # (C,), float32, or None
    added,  # what is added at the end, or None
    y,
    pixels,
    height,
    width,
    SILU: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (pixels of all samples, channels): y = act(bias + weight * x) + added."""
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    exists, has = p < pixels, c < CHANNELS
    valid = exists[:, None] & has[None, :]
    row, column = (p // width % height).to(tl.int32), (p % width).to(tl.int32)
    z = before_activation(x, weight, bias, p, c, row, column, height, width, valid, has, TAPS, CHANNELS)
    if SILU:
        z *= tl.sigmoid(z)
    at = p[:, None] * CHANNELS + c[None, :]
    if added is not None:
        z += tl.load(added + at, mask=valid, other=0.0).to(tl.float32)
    tl.store(y + at, z, mask=valid)


@triton.jit
def convolve_gradients(
    gy,
    x,
    weight,
    bias,
    g,  # the gradient before the activation, or None without one
    sums,  # (programs, taps + 1, C): of the taps, and of the bias
    pixels,
    height,
    width,
    TAPS: tl.constexpr,
    COUNT: tl.constexpr,  # of the taps
    ROWS: tl.constexpr,  # COUNT + 1, padded
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (share of the pixels, channels): g, and the sums of g times what each tap saw."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < CHANNELS
    taps = tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, BC), tl.float32)
    for item in range(tl.program_id(0), tl.cdiv(pixels, P), tl.num_programs(0)):
        p = tl.cast(item, tl.int64) * P + tl.arange(0, P)
        exists = p < pixels
        valid = exists[:, None] & has[None, :]
        row, column = (p // width % height).to(tl.int32), (p % width).to(tl.int32)
        at = p[:, None] * CHANNELS + c[None, :]
        value = tl.load(gy + at, mask=valid, other=0.0).to(tl.float32)
        if g is not None:
            z = before_activation(x, weight, bias, p, c, row, column, height, width, valid, has, TAPS, CHANNELS)
            s = tl.sigmoid(z)
            value *= s * (1.0 + z * (1.0 - s))
            tl.store(g + at, value, mask=valid)
        for j in tl.static_range(COUNT):
            seen = seen_by_tap(x, p, c, row, column, height, width, valid, TAPS[2 * j], TAPS[2 * j + 1], CHANNELS)
            total += tl.where(taps == j, tl.sum(value * seen, 0)[None, :], 0.0)
        total += tl.where(taps == COUNT, tl.sum(value, 0)[None, :], 0.0)
    to = (tl.program_id(0) * (COUNT + 1) + taps) * CHANNELS + c[None, :]
    tl.store(sums + to, total, mask=(taps <= COUNT) & has[None, :])


def run_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    y: Tensor,
    taps: Taps,
    size: tuple[int, int],
    silu: bool,
) -> None:
    """Fill y = act(bias + sum_j weight_j x(p + tap_j)) + added.

    x, added, y: maps of `size`, the channels of a pixel contiguous. weight (taps, C) and bias: float32, contiguous.
    """
    if x.numel() > 0:
        tile = gpu.map_tile(x.numel(), weight.shape[1])
        given = {"x": x, "weight": weight, "bias": bias, "added": added, "y": y, "height": size[0], "width": size[1]}
        gpu.launch(convolve, gpu.map_grid(tile), x.device, **given, SILU=silu, TAPS=taps, **tile)


def run_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    dx: Tensor,
    taps: Taps,
    size: tuple[int, int],
    silu: bool,
) -> tuple[Tensor, Tensor | None]:
    """Fill dx, to which `added` is added; dweight (taps, C) and dbias. Arguments as in `run_forward`."""
    count, channels = weight.shape
    if x.numel() == 0:
        return torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    tile = gpu.map_tile(x.numel(), channels)
    blocks = gpu.map_grid(tile, shared=True)
    sums = weight.new_empty((blocks[0], count + 1, channels))
    g = torch.empty_like(gy, dtype=torch.float32) if silu else None
    given = {"gy": gy, "x": x, "weight": weight, "bias": bias, "g": g, "height": size[0], "width": size[1]}
    rows = triton.next_power_of_2(count + 1)
    gpu.launch(convolve_gradients, blocks, x.device, **given, sums=sums, TAPS=taps, COUNT=count, ROWS=rows, **tile)
    # A pixel's gradient comes from the pixels that saw it: the same taps, the other way.
    opposite = tuple(-offset for offset in taps)
    run_forward(gy if g is None else g, weight, None, added, dx, opposite, size, silu=False)
    return sums[:, :-1].sum(0), None if bias is None else sums[:, -1].sum(0)


def _weights(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return dense(weight.reshape(-1, 9).t(), torch.float32), dense(bias, torch.float32)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool) -> Tensor:
    """See the public function."""
    x, y = channels_last(x), empty_map(x)
    run_forward(x, *_weights(weight, bias), x if residual else None, y, SQUARE, (x.shape[2], x.shape[3]), act == "silu")
    return y


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (channels_last memory), dweight, dbias."""
    gy, x, dx = channels_last(gy), channels_last(x), empty_map(x)
    added, size = gy if residual else None, (x.shape[2], x.shape[3])
    dtaps, dbias = run_backward(gy, x, *_weights(weight, bias), added, dx, SQUARE, size, act == "silu")
    return dx, dtaps.t().reshape(weight.shape), dbias
