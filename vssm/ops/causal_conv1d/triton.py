"""The causal depthwise convolution on Triton: sequences with the channels contiguous, bias and SiLU in one pass. No
autograd.

Arithmetic is float32. The backward computes the value before the activation again; its sums over steps are one part per
program, added in a fixed order, without atomics.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vssm.ops import gpu

STEPS = 32
# Programs that share the steps in the backward of the weights; see selective_scan/triton.py.
SHARES = 512


@triton.jit
def past(x, p, c, t, length, valid, i: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, C: tl.constexpr):
    """What tap i sees from steps p, which are number t of their sequence: zeros before its beginning."""
    back: tl.constexpr = (i - W + 1) * (-1 if REVERSE else 1)
    inside = (t + back >= 0) & (t + back < length)
    at = (p + back)[:, None] * C + c[None, :]
    return tl.load(x + at, mask=valid & inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def taps_and_bias(
    x, weight, bias, p, c, t, length, valid, has, W: tl.constexpr, REVERSE: tl.constexpr, C: tl.constexpr
):
    """bias + sum_i weight_i x (P, BC)."""
    z = tl.zeros(valid.shape, tl.float32)
    for i in tl.static_range(W):
        seen = past(x, p, c, t, length, valid, i, W, REVERSE, C)
        z += seen * tl.load(weight + i * C + c, mask=has, other=0.0)[None, :]
    if bias is not None:
        z += tl.load(bias + c, mask=has, other=0.0)[None, :]
    return z


@triton.jit
def slide(
    x,
    weight,  # (W, C), float32; bias likewise
    bias,
    y,
    steps,
    length,
    SILU: tl.constexpr,
    REVERSE: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (steps of all sequences, channels): y = act(bias + sum_i weight_i x)."""
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    exists, has = p < steps, c < C
    valid = exists[:, None] & has[None, :]
    t = (p % length).to(tl.int32)
    z = taps_and_bias(x, weight, bias, p, c, t, length, valid, has, W, REVERSE, C)
    if SILU:
        z *= tl.sigmoid(z)
    tl.store(y + p[:, None] * C + c[None, :], z, mask=valid)


@triton.jit
def slide_sums(
    gy,
    x,
    weight,
    bias,
    g,  # the gradient before the activation, or None without one
    sums,  # (programs, W + 1, C): of the taps, and of the bias
    steps,
    length,
    REVERSE: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (share of the steps, channels): g, and the sums of g times what each tap saw."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < C
    row = tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, BC), tl.float32)
    for item in range(tl.program_id(0), tl.cdiv(steps, P), tl.num_programs(0)):
        p = tl.cast(item, tl.int64) * P + tl.arange(0, P)
        exists = p < steps
        valid = exists[:, None] & has[None, :]
        t = (p % length).to(tl.int32)
        at = p[:, None] * C + c[None, :]
        value = tl.load(gy + at, mask=valid, other=0.0).to(tl.float32)
        if g is not None:
            z = taps_and_bias(x, weight, bias, p, c, t, length, valid, has, W, REVERSE, C)
            s = tl.sigmoid(z)
            value *= s * (1.0 + z * (1.0 - s))
            tl.store(g + at, value, mask=valid)
        for i in tl.static_range(W):
            seen = past(x, p, c, t, length, valid, i, W, REVERSE, C)
            total += tl.where(row == i, tl.sum(value * seen, 0)[None, :], 0.0)
        total += tl.where(row == W, tl.sum(value, 0)[None, :], 0.0)
    to = (tl.program_id(0) * (W + 1) + row) * C + c[None, :]
    tl.store(sums + to, total, mask=(row <= W) & has[None, :])


def _tile(x: Tensor, weight: Tensor) -> dict[str, Any]:
    """Of x (B, L, C)."""
    batch, length, channels = x.shape
    block = {"BC": gpu.channel_block(channels)}
    return block | {"steps": batch * length, "length": length, "W": weight.shape[1], "C": channels, "P": STEPS}


def _grid(tile: dict[str, Any]) -> tuple[int, int, int]:
    return -(-tile["steps"] // tile["P"]), -(-tile["C"] // tile["BC"]), 1


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool) -> Tensor:
    """See the public function."""
    x = x.mT.contiguous()
    tile, y = _tile(x, weight), x.new_empty(x.shape)
    if x.numel() == 0:
        return y.mT
    taps, bias = weight.float().mT.contiguous(), None if bias is None else bias.float().contiguous()
    options = {"SILU": act == "silu", "REVERSE": reverse}
    gpu.launch(slide, _grid(tile), x.device, x=x, weight=taps, bias=bias, y=y, **options, **tile)
    return y.mT


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, act: str, reverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx (memory of (B, L, C)), dweight, dbias."""
    gy, x = gy.mT.contiguous(), x.mT.contiguous()
    dx = x.new_empty(x.shape)
    if x.numel() == 0:
        return dx.mT, weight.new_zeros(weight.shape), None if bias is None else bias.new_zeros(bias.shape)
    tile, taps = _tile(x, weight), weight.float().mT.contiguous()
    wide_bias = None if bias is None else bias.float().contiguous()
    blocks, groups, _ = _grid(tile)
    shares = max(1, min(blocks, SHARES // groups))
    sums = taps.new_empty((shares, tile["W"] + 1, tile["C"]))
    g = taps.new_empty(x.shape) if act == "silu" else None
    rows = triton.next_power_of_2(tile["W"] + 1)
    parts = {"bias": wide_bias, "g": g, "sums": sums, "REVERSE": reverse, "ROWS": rows}
    gpu.launch(slide_sums, (shares, groups, 1), x.device, gy=gy, x=x, weight=taps, **parts, **tile)
    # A step's gradient comes from the steps that saw it: the same taps, the other way in time.
    options = {"bias": None, "SILU": False, "REVERSE": not reverse}
    source = gy if g is None else g
    gpu.launch(slide, _grid(tile), x.device, x=source, weight=taps, y=dx, **options, **tile)
    return dx.mT, sums[:, :-1].sum(0).mT, None if bias is None else sums[:, -1].sum(0)
