"""State fusion on Triton: every distinct tap once, whatever the form; borders by clamped coordinates. No autograd.

Maps are channels-last, arithmetic is float32. The taps of all dilations are folded into one list of offsets with one
weight per channel each, 25 for dilations 1, 3, 5.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from vssm.ops import gpu
from vssm.ops.ss2d import triton_readout
from vssm.ops.state_fusion.fold import fold_kernels, reaching, unfold_gradient
from vssm.ops.tensors import channels_last, empty_map


@triton.jit
def seen_by_tap(h, offsets, j, p, c, row, column, height, width, valid, CHANNELS: tl.constexpr):
    """What tap j sees from pixels p: the border repeats."""
    at_row = tl.minimum(tl.maximum(row + tl.load(offsets + 2 * j), 0), height - 1)
    at_column = tl.minimum(tl.maximum(column + tl.load(offsets + 2 * j + 1), 0), width - 1)
    at = p + (at_row - row) * width + at_column - column
    return tl.load(h + at[:, None] * CHANNELS + c[None, :], mask=valid, other=0.0).to(tl.float32)


@triton.jit
def fuse(
    h,
    weights,  # (taps, C)
    offsets,  # (taps, 2): rows, columns
    scale,  # (B, H, W) or None: C of the readout
    u,  # with D: what is added
    D,
    y,
    pixels,
    height,
    width,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (pixels of all samples, channels): y = scale * sum of taps + D u."""
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    exists, has = p < pixels, c < CHANNELS
    valid = exists[:, None] & has[None, :]
    row, column = p // width % height, p % width
    total = tl.zeros((P, BC), tl.float32)
    for j in range(TAPS):
        value = seen_by_tap(h, offsets, j, p, c, row, column, height, width, valid, CHANNELS)
        total += value * tl.load(weights + j * CHANNELS + c, mask=has, other=0.0)[None, :]
    if scale is not None:
        total *= tl.load(scale + p, mask=exists, other=0.0).to(tl.float32)[:, None]
    at = p[:, None] * CHANNELS + c[None, :]
    if u is not None:
        value = tl.load(u + at, mask=valid, other=0.0).to(tl.float32)
        total += value * tl.load(D + c, mask=has, other=0.0)[None, :]
    tl.store(y + at, total, mask=valid)


@triton.jit
def fuse_transposed(
    g,
    weights,
    offsets,
    scale,
    dpadded,
    pixels,  # of the padded maps
    height,
    width,
    REACH: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (pixels of the maps padded by REACH, channels): the sum over taps of g where they look from."""
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    exists, has = p < pixels, c < CHANNELS
    padded_height, padded_width = height + 2 * REACH, width + 2 * REACH
    sample = p // (padded_height * padded_width)
    row, column = p // padded_width % padded_height - REACH, p % padded_width - REACH
    total = tl.zeros((P, BC), tl.float32)
    for j in range(TAPS):
        from_row = row - tl.load(offsets + 2 * j)
        from_column = column - tl.load(offsets + 2 * j + 1)
        inside = exists & (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
        at = (sample * height + from_row) * width + from_column
        value = tl.load(g + at[:, None] * CHANNELS + c[None, :], mask=inside[:, None] & has[None, :], other=0.0)
        value = value.to(tl.float32)
        if scale is not None:
            value *= tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)[:, None]
        total += value * tl.load(weights + j * CHANNELS + c, mask=has, other=0.0)[None, :]
    tl.store(dpadded + p[:, None] * CHANNELS + c[None, :], total, mask=exists[:, None] & has[None, :])


@triton.jit
def correlate(
    g,
    h,
    offsets,
    scale,
    dweights,  # (programs, taps, C)
    pixels,
    height,
    width,
    TAPS: tl.constexpr,
    TAPS_PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (share of the pixels, channels): the sum of g times what each tap saw."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < CHANNELS
    taps = tl.arange(0, TAPS_PADDED)[:, None]
    total = tl.zeros((TAPS_PADDED, BC), tl.float32)
    for item in range(tl.program_id(0), tl.cdiv(pixels, P), tl.num_programs(0)):
        p = tl.cast(item, tl.int64) * P + tl.arange(0, P)
        exists = p < pixels
        valid = exists[:, None] & has[None, :]
        row, column = p // width % height, p % width
        value = tl.load(g + p[:, None] * CHANNELS + c[None, :], mask=valid, other=0.0).to(tl.float32)
        if scale is not None:
            value *= tl.load(scale + p, mask=exists, other=0.0).to(tl.float32)[:, None]
        for j in range(TAPS):
            seen = seen_by_tap(h, offsets, j, p, c, row, column, height, width, valid, CHANNELS)
            total += tl.where(taps == j, tl.sum(value * seen, 0)[None, :], 0.0)
    to = (tl.program_id(0) * TAPS + taps) * CHANNELS + c[None, :]
    tl.store(dweights + to, total, mask=(taps < TAPS) & has[None, :])


@lru_cache(maxsize=64)
def _offsets(dilations: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 (taps, 2): every distinct (row, column) once. Kept, since a copy to a GPU cannot be part of a graph."""
    ends = {(d * i, d * j) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1)}
    return torch.tensor(sorted(ends), dtype=torch.int32, device=device)


class _Taps:
    """The distinct taps of some dilations: offsets, and where they lie in the folded kernel."""

    def __init__(self, h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]):
        dilations = reaching(h, dilations)
        self.reach = max(dilations)
        self.offsets = _offsets(tuple(dilations), kernels.device)
        self.index = (self.offsets.long() + self.reach).unbind(1)
        self.kernels, self.alphas, self.dilations = kernels.float(), alphas.float(), dilations
        folded = fold_kernels(self.kernels, self.alphas, dilations)
        self.weights = folded[:, 0][:, self.index[0], self.index[1]].t().contiguous()

    def gradients(self, dweights: Tensor) -> tuple[Tensor, Tensor]:
        """Of the kernels and the alphas, given (taps, C)."""
        side = 2 * self.reach + 1
        dfolded = dweights.new_zeros(dweights.shape[1], 1, side, side)
        dfolded[:, 0, self.index[0], self.index[1]] = dweights.t()
        return unfold_gradient(dfolded, self.kernels, self.alphas, self.dilations)


def _fuse(h: Tensor, taps: _Taps, scale: Tensor | None, u: Tensor | None, D: Tensor | None, y: Tensor) -> Tensor:
    tile = gpu.map_tile(h.numel(), h.shape[1])
    gpu.launch(
        fuse,
        gpu.map_grid(tile),
        h.device,
        h=channels_last(h),
        weights=taps.weights,
        offsets=taps.offsets,
        scale=scale,
        u=None if u is None else channels_last(u),
        D=None if D is None else D.float().contiguous(),
        y=y,
        height=h.shape[2],
        width=h.shape[3],
        TAPS=len(taps.offsets),
        **tile,
    )
    return y


def _backward(g: Tensor, h: Tensor, taps: _Taps, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    g, h = channels_last(g), channels_last(h)
    batch, channels, height, width = h.shape
    common = {"g": g, "offsets": taps.offsets, "scale": scale, "TAPS": len(taps.offsets)}
    common |= {"height": height, "width": width}

    reach = taps.reach
    padded = h.new_empty((batch, height + 2 * reach, width + 2 * reach, channels), dtype=torch.float32)
    tile = gpu.map_tile(padded.numel(), channels)
    given = {"weights": taps.weights, "dpadded": padded, "REACH": reach}
    gpu.launch(fuse_transposed, gpu.map_grid(tile), h.device, **given, **common, **tile)
    dh = _fold_border(_fold_border(padded, 1, reach), 2, reach).permute(0, 3, 1, 2)

    tile = gpu.map_tile(h.numel(), channels)
    grid = gpu.map_grid(tile, shared=True)
    parts = h.new_empty((grid[0], len(taps.offsets), channels), dtype=torch.float32)
    many = triton.next_power_of_2(len(taps.offsets))
    gpu.launch(correlate, grid, h.device, h=h, dweights=parts, TAPS_PADDED=many, **common, **tile)
    dh = dh.to(h.dtype).contiguous(memory_format=torch.channels_last)
    return dh, *taps.gradients(parts.sum(0))


def _fold_border(padded: Tensor, dim: int, reach: int) -> Tensor:
    """What reached beyond an edge belongs to the edge, whose value was repeated there. In a fixed order, unlike the
    backward of torch's replication padding on a GPU."""
    size = padded.shape[dim] - 2 * reach
    inner = padded.narrow(dim, reach, size)
    inner.select(dim, 0).add_(padded.narrow(dim, 0, reach).sum(dim))
    inner.select(dim, size - 1).add_(padded.narrow(dim, reach + size, reach).sum(dim))
    return inner


def forward(h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]) -> Tensor:
    """See the public function; kernels (n, C, 1, 3, 3), at least one dilation."""
    return _fuse(h, _Taps(h, kernels, alphas, dilations), None, None, None, empty_map(h))


def backward(
    g: Tensor, h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """dh (channels_last memory), dkernels, dalphas."""
    return _backward(g, h, _Taps(h, kernels, alphas, dilations), None)


def readout_forward(
    h: Tensor, kernels: Tensor, alphas: Tensor, C: Tensor, u: Tensor | None, D: Tensor | None, dilations: list[int]
) -> Tensor:
    """C * fused + D * u, float32."""
    return _fuse(h, _Taps(h, kernels, alphas, dilations), C.contiguous(), u, D, empty_map(h, torch.float32))


def readout_backward(
    g: Tensor,
    h: Tensor,
    kernels: Tensor,
    alphas: Tensor,
    C: Tensor,
    u: Tensor | None,
    D: Tensor | None,
    dilations: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dh, dkernels, dalphas, dC, du, dD. The fusion is computed once more, for dC."""
    taps = _Taps(h, kernels, alphas, dilations)
    g = channels_last(g)
    fused = _fuse(h, taps, None, None, None, empty_map(h, torch.float32)).permute(0, 2, 3, 1)[:, None, None]
    dC = triton_readout.gradient_of_weights(g, fused, C[:, None])[:, 0]
    dh, dkernels, dalphas = _backward(g, h, taps, C.contiguous())
    du, dD = (None, None) if u is None or D is None else triton_readout.skip_backward(g, u, D)
    return dh, dkernels, dalphas, dC, du, dD
