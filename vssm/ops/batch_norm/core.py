"""Batch normalisation in training on the compiled core (csrc/kernels/batch_norm.cpp).

With ReLU, residual and even the linear layer after it in one operator, no normalised map is kept, and the widest ones
are never written: the layer reads them from the cache, chunk by chunk.
"""

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.linear import core as linear
from vssm.ops.native import ACTIVATIONS

_NO_GRADIENT = (0, 0, 0, 0, 0)

# Elements of the chunk between norm and linear layer: 1 MB in float32, half of a usual L2.
CHUNK_ELEMENTS = 1 << 18


def _sizes(x: Tensor, act: str) -> tuple[int, int, int, int]:
    channels = x.shape[-1]
    return x.dtype is torch.float64, x.numel() // channels, channels, ACTIVATIONS[act]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel; x (..., C) contiguous."""
    mean, var = x.new_empty(x.shape[-1]), x.new_empty(x.shape[-1])
    native.call("batch_norm_statistics", *_sizes(x, "none"), x, mean, var, 0, 0, 0, 0, *_NO_GRADIENT)
    return mean, var


class _Affine:
    """What the norm does once the statistics are known: act(x * scale + shift)."""

    def __init__(self, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, act: str, eps: float):
        self.mean, self.act = mean, act
        self.rstd = torch.rsqrt(var + eps)
        self.scale = weight * self.rstd
        self.shift = bias - mean * self.scale

    def forward(self, x: Tensor, out: Tensor, residual: Tensor | None = None) -> Tensor:
        rows = (x, 0, 0, self.scale, self.shift, residual, out)
        native.call("batch_norm_forward", *_sizes(x, self.act), *rows, *_NO_GRADIENT)
        return out

    def add_sums(self, x: Tensor, g: Tensor, dweight: Tensor, dbias: Tensor) -> None:
        """Add what these rows give to the gradients of weight and bias."""
        rows = (x, self.mean, self.rstd, self.scale, self.shift, 0, 0)
        native.call("batch_norm_sums", *_sizes(x, self.act), *rows, g, dweight, dbias, 0, 0)

    def backward(self, x: Tensor, g: Tensor, dweight: Tensor, dbias: Tensor, out: Tensor) -> Tensor:
        """The gradient of x, from the complete sums. `out` may be g."""
        rows = x.numel() // x.shape[-1]
        slope = self.scale * self.rstd * dweight / -rows
        offset = self.scale * dbias / -rows - slope * self.mean
        arguments = (x, 0, 0, self.scale, self.shift, 0, out, g, 0, 0, slope, offset)
        native.call("batch_norm_backward", *_sizes(x, self.act), *arguments)
        return out


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, act: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, mean and biased variance."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    mean, var = statistics(x)
    return _Affine(mean, var, weight, bias, act, eps).forward(x, torch.empty_like(x), residual), mean, var


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, act: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight, dbias."""
    x, gy = x.contiguous(), gy.contiguous()
    affine = _Affine(mean, var, weight, bias, act, eps)
    dweight, dbias = torch.zeros_like(mean), torch.zeros_like(mean)
    affine.add_sums(x, gy, dweight, dbias)
    return affine.backward(x, gy, dweight, dbias, torch.empty_like(x)), dweight, dbias


# ---- with a linear layer after it ----


def _chunks(x: Tensor) -> tuple[Tensor, list[slice], Tensor]:
    """The rows of x, their ranges, and a buffer for one of them."""
    rows = x.contiguous().view(-1, x.shape[-1])
    step = min(len(rows), max(1, CHUNK_ELEMENTS // x.shape[-1]))
    parts = [slice(i, min(i + step, len(rows))) for i in range(0, len(rows), step)]
    return rows, parts, x.new_empty(step, x.shape[-1])


def linear_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, act: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result of the linear layer, mean and biased variance of x."""
    rows, parts, buffer = _chunks(x)
    mean, var = statistics(rows)
    affine = _Affine(mean, var, norm_weight, norm_bias, act, eps)
    y = x.new_empty(len(rows), weight.shape[0])
    fits = linear.is_ahead(x, weight)
    packed = linear.pack(weight) if fits else None
    for part in parts:
        hidden = affine.forward(rows[part], buffer[: part.stop - part.start])
        if fits:
            linear.forward(hidden, weight, None, None, "none", y[part], packed)
        else:
            torch.mm(hidden, weight.t(), out=y[part])
    return y.view(*x.shape[:-1], -1), mean, var


def linear_backward(
    gy: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    mean: Tensor,
    var: Tensor,
    act: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, d norm_weight, d norm_bias, d weight."""
    rows, parts, buffer = _chunks(x)
    g = gy.reshape(len(rows), -1)
    affine = _Affine(mean, var, norm_weight, norm_bias, act, eps)
    dnorm_weight, dnorm_bias, dweight = torch.zeros_like(mean), torch.zeros_like(mean), torch.zeros_like(weight)
    dx = torch.empty_like(rows)  # the gradient of the normalised rows until every sum is known
    for part in parts:
        hidden = affine.forward(rows[part], buffer[: part.stop - part.start])
        dweight.addmm_(g[part].t(), hidden)
        torch.mm(g[part], weight, out=dx[part])
        affine.add_sums(rows[part], dx[part], dnorm_weight, dnorm_bias)
    affine.backward(rows, dx, dnorm_weight, dnorm_bias, dx)
    return dx.view(x.shape), dnorm_weight, dnorm_bias, dweight
