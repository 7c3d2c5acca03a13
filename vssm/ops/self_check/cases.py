"""What the self-test runs: every operator of the dispatch table at small and odd sizes and in awkward memory."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm import ops

# Operators whose kernels know these dtypes only. In others they are torch's products, whatever the path.
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "conv2d": (torch.float32,),
    "linear": (torch.float32,),
    "batch_norm": (torch.float64, torch.float32),
    "batch_norm_linear": (torch.float64, torch.float32),
    "bottleneck": (torch.float64, torch.float32),
    "mlp": (torch.float64, torch.float32),
}
CASCADE = "ss2d_cascade"  # selective_scan between torch's products, whose rounding in half precision is not ours


@dataclass(frozen=True)
class Size:
    """Batch, channels, height, width and states per channel, and how the tensors lie in memory (see `lay_out`).

    wide: also run in half precision and by Triton, which compiles its kernels for each size and dtype anew.
    """

    B: int
    C: int
    H: int
    W: int
    N: int
    layout: str = "contiguous"
    wide: bool = False

    def __str__(self) -> str:
        return f"batch {self.B}, {self.C} channels, {self.H}x{self.W}, d_state {self.N}, {self.layout}"


# One pixel; odd sizes that fill no vector, tile or block of a scan; the 14x14 maps and 96 channels of real models.
SIZES = (
    Size(1, 1, 1, 1, 1),
    Size(2, 3, 7, 5, 2),
    Size(2, 17, 7, 5, 1, "channels_last", wide=True),
    Size(1, 17, 5, 7, 16, "transposed", wide=True),
    Size(1, 3, 3, 2, 16, "sliced"),
    Size(1, 96, 7, 5, 1, "expanded gradients"),
    Size(2, 96, 14, 14, 1, "channels_last", wide=True),
    Size(1, 17, 14, 14, 2),
)


@dataclass(frozen=True)
class Case:
    """One call: `function` of all `maps` and `weights`, float32 numbers that lie contiguous."""

    operator: str
    size: Size
    function: Callable[..., Any]
    maps: dict[str, Tensor]
    weights: dict[str, Tensor]
    note: str = ""

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """In which to run it, full precision first."""
        half = (torch.bfloat16, torch.float16) if self.size.wide and self.note != CASCADE else ()
        return DTYPES.get(self.operator, (torch.float64, torch.float32, *half))

    def __str__(self) -> str:
        return f"{self.size}{self.note and ', '}{self.note}"

    def __call__(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        y = self.function(**tensors)
        return y if isinstance(y, tuple) else (y,)


def cases_of(operator: str) -> Iterator[Case]:
    """The cases of an operator, the same numbers at every call. KeyError for one that has none."""
    build = BUILDERS[operator]
    for size in SIZES:
        draw = partial(_draw, torch.Generator().manual_seed(zlib.crc32(f"{operator} {size}".encode())))
        for function, maps, weights, *note in build(size, draw):
            yield Case(operator, size, function, maps, weights, *note)


def lay_out(t: Tensor, layout: str) -> Tensor:
    """The same values in other memory: channels_last (dim 1 innermost), transposed (the last two dims swapped), sliced
    (the inner part of a wider tensor, so that rows lie apart and begin at no round address)."""
    if layout == "channels_last" and t.dim() > 2:
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed" and t.dim() > 1:
        return t.mT.contiguous().mT
    if layout == "sliced" and t.dim() > 0:
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + 2), float("nan"))
        wide[..., 1:-1] = t
        return wide[..., 1:-1]
    return t.contiguous()


def _draw(generator: torch.Generator, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _scaled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights (out, in, ...) such that a product of normal numbers is about normal."""
    return {name: t / max(1, t[0].numel()) ** 0.5 if t.dim() > 1 else t for name, t in tensors.items()}


def _decaying(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"A": -tensors["A"].abs() - 0.1}


# ---- rows: norms, products ----


def _rows(s: Size) -> tuple[int, ...]:
    return s.B, s.H, s.W, s.C


def _layer_norm(s: Size, draw):
    if s.C == 1:  # one channel has no variance: all that is left is the rounding of its mean, times 1 / sqrt(eps)
        return
    weights = draw(weight=(s.C,), bias=(s.C,))
    yield ops.layer_norm, draw(x=_rows(s), gate=_rows(s)), weights, "gated"
    yield ops.layer_norm, draw(x=_rows(s)), weights


def _rms_norm(s: Size, draw):
    yield ops.rms_norm, draw(x=_rows(s)), draw(weight=(s.C,))


def _batch_norm(s: Size, draw):
    function = partial(ops.batch_norm, running_mean=None, running_var=None, act="relu")
    maps, weights = draw(x=_batch(s), residual=_batch(s)), draw(weight=(s.C,), bias=(s.C,))
    # The gradient of a ReLU jumps at 0, and near it rounding decides on which side. Here no value comes near: of each
    # channel about half are well above its mean and half below, whatever its weight.
    sign = 1.0 - 2 * (torch.arange(maps["x"].numel() // s.C) % 2).view(*_batch(s)[:-1], 1)
    maps["x"] = sign * (1 + 0.2 * maps["x"].tanh())
    weights = {"weight": weights["weight"].sign() + 0.3 * weights["weight"], "bias": 0.2 * weights["bias"].tanh()}
    yield function, maps, weights


def _batch(s: Size) -> tuple[int, ...]:
    return s.B + 3, s.H, s.W, s.C  # there is no variance of one value, and none to speak of for two


def _batch_norm_linear(s: Size, draw):
    function = partial(ops.batch_norm_linear, running_mean=None, running_var=None)
    weights = draw(norm_weight=(s.C,), norm_bias=(s.C,), weight=(s.C + 1, s.C))
    yield function, draw(x=_batch(s)), _scaled(weights)


def _linear(s: Size, draw):
    weights = _scaled(draw(weight=(2 * s.C + 1, s.C), bias=(2 * s.C + 1,)))
    for act in ("gelu", "silu", "none"):
        yield partial(ops.linear, act=act), draw(x=_rows(s), residual=(*_rows(s)[:-1], 2 * s.C + 1)), weights, act


def _mlp(s: Size, draw):
    hidden = 11 * s.C + 1  # so wide that the largest size takes more than one chunk of rows
    weights = _scaled(draw(weight1=(hidden, s.C), bias1=(hidden,), weight2=(s.C, hidden), bias2=(s.C,)))
    yield ops.mlp, draw(x=_rows(s), residual=_rows(s)), weights


def _bottleneck(s: Size, draw):
    wide = 2 * s.C + 1
    while True:
        maps = draw(x=_rows(s))
        weights = draw(weight1=(wide, s.C), bias1=(wide,), weight2=(wide, 1, 3, 3), bias2=(wide,))
        weights = _scaled(weights | draw(weight3=(s.C, wide), bias3=(s.C,)))
        if _off_zero(maps["x"], **weights):
            break
    yield ops.bottleneck, maps, weights


def _off_zero(x, weight1, bias1, weight2, bias2, **_) -> bool:
    """Whether float32 leaves every value before a ReLU on its side of 0, where the gradient jumps."""
    x, weight1, bias1, weight2, bias2 = (t.double() for t in (x, weight1, bias1, weight2, bias2))
    first = F.linear(x, weight1, bias1).movedim(-1, 1)
    second = F.conv2d(F.relu(first), weight2, bias2, stride=2, padding=1, groups=len(weight2))
    return min(first.abs().min().item(), second.abs().min().item()) > 3e-6


# ---- convolutions ----


def _conv2d(s: Size, draw):
    weights = _scaled(draw(weight=(s.C + 1, s.C, 3, 3), bias=(s.C + 1,)))
    yield partial(ops.conv2d, stride=2, padding=1), draw(x=(s.B, s.C, s.H, s.W)), weights


def _depthwise(s: Size, draw):
    weights = _scaled(draw(weight=(s.C, 1, 3, 3), bias=(s.C,)))
    function = partial(ops.depthwise_conv3x3, act="silu", residual=True)
    yield function, draw(x=(s.B, s.C, s.H, s.W)), weights


def _causal_conv1d(s: Size, draw):
    weights = _scaled(draw(weight=(s.C, 4), bias=(s.C,)))
    for reverse in (False, True):
        function = partial(ops.causal_conv1d, act="silu", reverse=reverse)
        yield function, draw(x=(s.B, s.C, s.H * s.W)), weights, "reverse" if reverse else ""


# ---- scans ----


def _sequences(s: Size, draw, **more: tuple[int, ...]):
    K, L = 2, s.H * s.W
    maps = draw(u=(s.B, K * s.C, L), dt=(s.B, K * s.C, L), B=(s.B, K, s.N, L))
    return maps | draw(**more), _decaying(draw(A=(K * s.C, s.N), dt_bias=(K * s.C,)))


def _selective_scan(s: Size, draw):
    L = s.H * s.W
    maps, weights = _sequences(s, draw, C=(s.B, 2, s.N, L))
    weights |= draw(D=(2 * s.C,), initial_state=(s.B, 2 * s.C, s.N))
    yield partial(ops.selective_scan, dt_softplus=True, return_last_state=True), maps, weights
    if L < 50:
        yield partial(ops.selective_scan, dt_softplus=True, discretization="zoh"), maps, weights, "zoh"
        yield ops.ss2d_cascade, *_map_and_weights(s, draw, 4), CASCADE


def _selective_scan_states(s: Size, draw):
    yield partial(ops.selective_scan_states, dt_softplus=True), *_sequences(s, draw)


def _map_and_weights(s: Size, draw, K: int, skip: bool = True):
    R = 1 + s.C // 16
    weights = _scaled(draw(dt_weight=(K, s.C, R)))
    weights["x_proj_weight"] = draw(w=(K, R + 2 * s.N, s.C))["w"] / s.C**0.5
    weights |= draw(dt_bias=(K, s.C)) | _decaying(draw(A=(K * s.C, s.N)))
    return draw(x=(s.B, s.C, s.H, s.W)), weights | (draw(D=(K * s.C,)) if skip else {})


def _ss2d(s: Size, draw):
    yield partial(ops.ss2d, routes=ops.CROSS), *_map_and_weights(s, draw, 4)
    if s.H * s.W < 50:
        yield partial(ops.ss2d, routes=ops.RASTER), *_map_and_weights(s, draw, 1, skip=False), "raster"
        yield partial(ops.ss2d, routes=ops.RASTER, discretization="zoh"), *_map_and_weights(s, draw, 1), "zoh"


def _ss2d_states(s: Size, draw):
    yield partial(ops.ss2d_states, routes=ops.CROSS), *_map_and_weights(s, draw, 4, skip=False)


def _ss2d_readout(s: Size, draw):
    grid = s.H, s.W
    maps = draw(h=(s.B, 2, s.C, s.N, *grid), C=(s.B, 2, s.N, *grid), x=(s.B, s.C, *grid))
    yield ops.ss2d_readout, maps, draw(D=(2 * s.C,))


# ---- states in the plane ----


def _fused(function, kernels: Tensor, **tensors):
    return function(kernels=list(kernels), dilations=[1, 3, 5], **tensors)


def _kernels(draw, channels: int) -> dict[str, Tensor]:
    return draw(alphas=(3,)) | {"kernels": draw(k=(3, channels, 1, 3, 3))["k"] / 3}


def _state_fusion(s: Size, draw):
    yield partial(_fused, ops.state_fusion), draw(h=(s.B, s.C, s.H, s.W)), _kernels(draw, s.C)


def _state_fusion_readout(s: Size, draw):
    grid = s.H, s.W
    maps = draw(h=(s.B, s.C, *grid), C=(s.B, 1, *grid), u=(s.B, s.C, *grid))
    yield partial(_fused, ops.state_fusion_readout), maps, _kernels(draw, s.C) | draw(D=(s.C,))


def _state_gather(s: Size, draw):
    grid = s.H, s.W
    maps = draw(h=(s.B, 2, s.C, s.N, *grid), offsets=(s.B, 2, 3, 2, *grid), weights=(s.B, 2, 3, *grid))
    # Between the pixels: at one the gradient of the offset jumps, and rounding decides on which side.
    offsets = 2 * maps["offsets"]
    maps["offsets"] = offsets.floor() + 0.1 + 0.8 * (offsets - offsets.floor())
    yield ops.state_gather, maps, {}


# By the operator's name in the dispatch table.
BUILDERS: dict[str, Callable[[Size, Any], Iterator[tuple]]] = {
    "batch_norm": _batch_norm,
    "batch_norm_linear": _batch_norm_linear,
    "bottleneck": _bottleneck,
    "causal_conv1d": _causal_conv1d,
    "conv2d": _conv2d,
    "depthwise_conv3x3": _depthwise,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "mlp": _mlp,
    "rms_norm": _rms_norm,
    "selective_scan": _selective_scan,
    "selective_scan_states": _selective_scan_states,
    "ss2d": _ss2d,
    "ss2d_readout": _ss2d_readout,
    "ss2d_states": _ss2d_states,
    "state_fusion": _state_fusion,
    "state_fusion_readout": _state_fusion_readout,
    "state_gather": _state_gather,
}
