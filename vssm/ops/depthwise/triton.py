"""The depthwise 3x3 convolution on Triton: channels-last maps, bias, SiLU and residual in one pass. No autograd.

torch would convert a half precision map to float32, convolve, activate, add and convert back, a pass over memory each.
Arithmetic is float32. The backward computes the value before the activation again, and with it the sums over pixels of
the weights' gradients, one part per program; parts are added in a fixed order, without atomics.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vssm.ops import gpu
from vssm.ops.tensors import channels_last, empty_map

PIXELS = 32
# Programs that share the pixels in the backward of the weights; see selective_scan/triton.py.
SHARES = 512


@triton.jit
def tap(x, p, c, row, column, height, width, valid, j: tl.constexpr, C: tl.constexpr):
    """What tap j sees from pixels p: zeros outside of the map."""
    dy: tl.constexpr = j // 3 - 1
    dx: tl.constexpr = j % 3 - 1
    inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
    at = (p + dy * width + dx)[:, None] * C + c[None, :]
    return tl.load(x + at, mask=valid & inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def before_activation(
    x, weight, bias, p, c, row, column, height, width, valid, has, FLIP: tl.constexpr, C: tl.constexpr
):
    """bias + weight * x (P, BC); FLIP turns the kernel by half a turn, for the gradient of x."""
    z = tl.zeros(valid.shape, tl.float32)
    for j in tl.static_range(9):
        seen = tap(x, p, c, row, column, height, width, valid, j, C)
        z += seen * tl.load(weight + c * 9 + (8 - j if FLIP else j), mask=has, other=0.0)[None, :]
    if bias is not None:
        z += tl.load(bias + c, mask=has, other=0.0)[None, :]
    return z


@triton.jit
def convolve(
    x,
    weight,  # (C, 9), float32; bias likewise
    bias,
    added,  # a map that is added at the end, or None
    y,
    pixels,
    height,
    width,
    SILU: tl.constexpr,
    FLIP: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (pixels of all samples, channels): y = act(bias + weight * x) + added."""
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    exists, has = p < pixels, c < C
    valid = exists[:, None] & has[None, :]
    row, column = (p // width % height).to(tl.int32), (p % width).to(tl.int32)
    z = before_activation(x, weight, bias, p, c, row, column, height, width, valid, has, FLIP, C)
    if SILU:
        z *= tl.sigmoid(z)
    at = p[:, None] * C + c[None, :]
    if added is not None:
        z += tl.load(added + at, mask=valid, other=0.0).to(tl.float32)
    tl.store(y + at, z, mask=valid)


@triton.jit
def weigh(
    gy,
    x,
    weight,
    bias,
    g,  # the gradient before the activation, or None without one
    sums,  # (programs, 10, C): of the nine taps, and of the bias
    pixels,
    height,
    width,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (share of the pixels, channels): g, and the sums of g times what each tap saw."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < C
    taps = tl.arange(0, 16)[:, None]
    total = tl.zeros((16, BC), tl.float32)
    for item in range(tl.program_id(0), tl.cdiv(pixels, P), tl.num_programs(0)):
        p = tl.cast(item, tl.int64) * P + tl.arange(0, P)
        exists = p < pixels
        valid = exists[:, None] & has[None, :]
        row, column = (p // width % height).to(tl.int32), (p % width).to(tl.int32)
        at = p[:, None] * C + c[None, :]
        value = tl.load(gy + at, mask=valid, other=0.0).to(tl.float32)
        if g is not None:
            z = before_activation(x, weight, bias, p, c, row, column, height, width, valid, has, False, C)
            s = tl.sigmoid(z)
            value *= s * (1.0 + z * (1.0 - s))
            tl.store(g + at, value, mask=valid)
        for j in tl.static_range(9):
            seen = tap(x, p, c, row, column, height, width, valid, j, C)
            total += tl.where(taps == j, tl.sum(value * seen, 0)[None, :], 0.0)
        total += tl.where(taps == 9, tl.sum(value, 0)[None, :], 0.0)
    to = (tl.program_id(0) * 10 + taps) * C + c[None, :]
    tl.store(sums + to, total, mask=(taps < 10) & has[None, :])


def _tile(x: Tensor) -> dict[str, Any]:
    batch, channels, height, width = x.shape
    sizes = {"pixels": batch * height * width, "height": height, "width": width, "C": channels}
    return sizes | {"P": PIXELS, "BC": gpu.channel_block(channels)}


def _grid(tile: dict[str, Any]) -> tuple[int, int, int]:
    return -(-tile["pixels"] // tile["P"]), -(-tile["C"] // tile["BC"]), 1


def _flat(weight: Tensor) -> Tensor:
    return weight.float().reshape(-1, 9).contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool) -> Tensor:
    """See the public function."""
    if x.numel() == 0:
        return empty_map(x)
    x, tile, y = channels_last(x), _tile(x), empty_map(x)
    bias = None if bias is None else bias.float().contiguous()
    added = x if residual else None
    options = {"SILU": act == "silu", "FLIP": False}
    gpu.launch(
        convolve, _grid(tile), x.device, x=x, weight=_flat(weight), bias=bias, added=added, y=y, **options, **tile
    )
    return y


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, residual: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (channels_last memory), dweight, dbias."""
    if x.numel() == 0:
        return empty_map(x), weight.new_zeros(weight.shape), None if bias is None else bias.new_zeros(bias.shape)
    gy, x, tile = channels_last(gy), channels_last(x), _tile(x)
    flat, wide_bias = _flat(weight), None if bias is None else bias.float().contiguous()
    blocks, groups, _ = _grid(tile)
    shares = max(1, min(blocks, SHARES // groups))
    sums = flat.new_empty((shares, 10, tile["C"]))
    g = empty_map(x, flat.dtype) if act == "silu" else None
    common = {"weight": flat, **tile}
    gpu.launch(weigh, (shares, groups, 1), x.device, gy=gy, x=x, bias=wide_bias, g=g, sums=sums, **common)
    dx = empty_map(x)
    source, added = gy if g is None else g, gy if residual else None
    options = {"bias": None, "SILU": False, "FLIP": True}
    gpu.launch(convolve, _grid(tile), x.device, x=source, added=added, y=dx, **options, **common)
    dtaps, dbias = sums[:, :9].sum(0), None if bias is None else sums[:, 9].sum(0)
    return dx, dtaps.t().reshape(weight.shape), dbias
