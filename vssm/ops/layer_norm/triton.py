"""Layer norm on Triton: rows whole in registers, the gate in the same pass; and
root mean square norm, which is the same without centring. No autograd.

Arithmetic is float32, whatever the dtypes. torch would convert a half precision map first and multiply by the gate
afterwards, a pass over memory each, and read the rows three times in the backward. Here the backward reads them once;
its sums over rows, the gradients of weight and bias, are one part per program, added in a fixed order.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vssm.ops import gpu
from vssm.ops.tensors import widest_dtype

# Numbers of a tile, of one row or of several short ones; 16 of them or fewer for each thread.
TILE = 1024
WIDEST = 8192
# Programs that share the rows in the backward; see selective_scan/triton.py.
SHARES = 512


@triton.jit
def load_row(x, at, valid):
    """float32, zeros beyond the end; x may be None."""
    return tl.load(x + at, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def standardise(x, valid, eps, CENTRED: tl.constexpr, C: tl.constexpr):
    """(x - mean) / sqrt(var + eps) by rows, 1 / sqrt(var + eps); not CENTRED the mean is taken as 0."""
    if CENTRED:
        x = tl.where(valid, x - (tl.sum(x, 1) / C)[:, None], 0.0)
    scale = 1.0 / tl.sqrt_rn(tl.sum(x * x, 1) / C + eps)[:, None]
    return x * scale, scale


@triton.jit
def normalise(
    x,  # (rows, C), as gate and y
    weight,  # (C,), or None, as bias
    bias,
    gate,  # or None
    y,
    eps,
    rows,
    CENTRED: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (rows): y."""
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.arange(0, BC)
    valid = (p < rows)[:, None] & (c < C)[None, :]
    at = p[:, None] * C + c[None, :]
    value, _ = standardise(load_row(x, at, valid), valid, eps, CENTRED, C)
    if weight is not None:
        value *= load_row(weight, c, c < C)[None, :]
    if bias is not None:
        value += load_row(bias, c, c < C)[None, :]
    if gate is not None:
        z = load_row(gate, at, valid)
        value *= z * tl.sigmoid(z)
    tl.store(y + at, value, mask=valid)


@triton.jit
def normalise_gradients(
    gy,
    x,
    weight,
    bias,
    gate,
    dx,
    dgate,
    dweight,  # (programs, C), or None, as dbias
    dbias,
    eps,
    rows,
    CENTRED: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (share of the rows): dx, dgate, and the sums over rows."""
    c = tl.arange(0, BC)
    w = tl.full((BC,), 1.0, tl.float32) if weight is None else load_row(weight, c, c < C)
    b = tl.zeros((BC,), tl.float32) if bias is None else load_row(bias, c, c < C)
    of_weight, of_bias = tl.zeros((P, BC), tl.float32), tl.zeros((P, BC), tl.float32)
    for item in range(tl.program_id(0), tl.cdiv(rows, P), tl.num_programs(0)):
        p = tl.cast(item, tl.int64) * P + tl.arange(0, P)
        valid = (p < rows)[:, None] & (c < C)[None, :]
        at = p[:, None] * C + c[None, :]
        normed, scale = standardise(load_row(x, at, valid), valid, eps, CENTRED, C)
        g = load_row(gy, at, valid)
        if gate is not None:
            z = load_row(gate, at, valid)
            s = tl.sigmoid(z)
            before = normed * w[None, :] + b[None, :]
            tl.store(dgate + at, g * before * s * (1.0 + z * (1.0 - s)), mask=valid)
            g *= z * s
        if dweight is not None:
            of_weight += g * normed
        if dbias is not None:
            of_bias += g
        g *= w[None, :]
        change = g - normed * (tl.sum(g * normed, 1) / C)[:, None]
        if CENTRED:
            change -= (tl.sum(g, 1) / C)[:, None]
        change *= scale
        tl.store(dx + at, change, mask=valid)
    to = tl.program_id(0) * C + c
    if dweight is not None:
        tl.store(dweight + to, tl.sum(of_weight, 0), mask=c < C)
    if dbias is not None:
        tl.store(dbias + to, tl.sum(of_bias, 0), mask=c < C)


def _tile(x: Tensor) -> dict[str, Any]:
    channels = x.shape[-1]
    if channels > WIDEST:
        raise ValueError(
            f"rows of {channels} channels are too long for the Triton norms, which take up to {WIDEST}; "
            "use the torch path: `with vssm.ops.use('torch')`"
        )
    block = triton.next_power_of_2(channels)
    tile = max(block, TILE)
    sizes = {"rows": x.numel() // channels, "C": channels, "P": tile // block, "BC": block}
    return sizes | {"num_warps": max(4, tile // 512)}


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.contiguous() for t in tensors]


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None, eps: float, centred: bool = True
) -> Tensor:
    """See the public function; not `centred` it is `rms_norm`."""
    x, weight, bias, gate = _contiguous(x, weight, bias, gate)
    tile = _tile(x)
    y = torch.empty_like(x, dtype=widest_dtype(x, weight, bias, gate))
    given = {"x": x, "weight": weight, "bias": bias, "gate": gate}
    grid = -(-tile["rows"] // tile["P"]), 1, 1
    gpu.launch(normalise, grid, x.device, **given, y=y, eps=eps, CENTRED=centred, **tile)
    return y


def backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    gate: Tensor | None,
    eps: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight, dbias, dgate; None where the input is absent."""
    gy, x, weight, bias, gate = _contiguous(gy, x, weight, bias, gate)
    tile = _tile(x)
    shares = max(1, min(-(-tile["rows"] // tile["P"]), SHARES))

    def parts(of: Tensor | None) -> Tensor | None:
        return None if of is None else x.new_empty((shares, tile["C"]), dtype=torch.float32)

    dx, dgate = torch.empty_like(x), None if gate is None else torch.empty_like(gate)
    dweight, dbias = parts(weight), parts(bias)
    given = {"gy": gy, "x": x, "weight": weight, "bias": bias, "gate": gate}
    grads = {"dx": dx, "dgate": dgate, "dweight": dweight, "dbias": dbias}
    gpu.launch(normalise_gradients, (shares, 1, 1), x.device, **given, **grads, eps=eps, CENTRED=centred, **tile)
    return dx, None if dweight is None else dweight.sum(0), None if dbias is None else dbias.sum(0), dgate
