"""The bottleneck in strips on the CPU: its wide maps live and die in the cache (csrc/kernels/bottleneck.cpp).

Written whole, the wide map of Spatial-Mamba-T's first downsampling is 51 MB at B=8, and training makes five of them:
the map, its ReLU, the two gradients, and one of zeros. Here a strip of rows goes through all three convolutions before
the next one begins. The backward recomputes the strip from x, two products in seven, and nothing wide is kept.

In half precision a strip is in float32 between the products, and in half precision for them: torch's gradient of a
depthwise convolution with stride 2 is several times as slow in bfloat16 (torch 2.13; docs/benchmarks.md). Gradients of
weights are added up over the strips in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.linear import bias_act
from vssm.ops.linear import core as linear
from vssm.ops.tensors import core_dtype, dense

# Elements of one strip of the wide map: 1 MB in float32, half of a usual L2. A sample up to four times that stays in
# one piece, and small ones go together, or the weights, which are read once per strip, would dominate.
STRIP_ELEMENTS = 1 << 18
SAMPLE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Strip:
    """Rows [top, bottom) of x, of some samples, and the rows [out_top, out_bottom) of the result they are for."""

    samples: slice
    top: int
    bottom: int
    out_top: int
    out_bottom: int
    last: bool

    @property
    def count(self) -> int:
        return self.samples.stop - self.samples.start

    @property
    def above(self) -> int:
        """1 when the strip begins with the row above its first centre, which the strip before had as well."""
        return int(self.top > 0)


def strips(batch: int, height: int, width: int, wide: int) -> Iterator[Strip]:
    """Cover every row of the result once, by shape alone."""
    out_height = (height + 1) // 2
    together = SAMPLE_ELEMENTS // (height * width * wide)
    if together > 0:
        for first in range(0, batch, together):
            yield Strip(slice(first, min(first + together, batch)), 0, height, 0, out_height, True)
        return
    rows = max(1, (STRIP_ELEMENTS // (width * wide) - 1) // 2)
    for sample in range(batch):
        for top in range(0, out_height, rows):
            end = min(top + rows, out_height)
            bottom = min(2 * end, height)
            yield Strip(slice(sample, sample + 1), max(2 * top - 1, 0), bottom, top, end, end == out_height)


class _Wide:
    """Both wide maps of one strip after another, in two buffers."""

    def __init__(self, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor):
        self.dtype = core_dtype(x)
        self.x, self.weight1, self.bias1, self.bias2 = x, weight1, bias1, dense(bias2, self.dtype)
        self.taps = dense(weight2.reshape(-1, 9).t(), self.dtype)  # a row of channels per tap
        batch, height, self.width, _ = x.shape
        self.wide = weight1.shape[0]
        self.out_width = (self.width + 1) // 2
        self.strips = list(strips(batch, height, self.width, self.wide))
        self.linear = linear.is_ahead(x, weight1, bias1)
        self.packed1 = linear.pack(weight1) if self.linear and len(self.strips) > 1 else None
        pixels = max(s.count * (s.bottom - s.top) for s in self.strips) * self.width
        out_pixels = max(s.count * (s.out_bottom - s.out_top) for s in self.strips) * self.out_width
        self.h = x.new_empty(pixels, self.wide, dtype=self.dtype)
        self.y = x.new_empty(out_pixels, self.wide, dtype=self.dtype)
        # What products read and write, in the dtype of x.
        self.factor = self.h if self.dtype is x.dtype else x.new_empty(pixels, self.wide)

    def sizes(self, s: Strip) -> tuple[int, ...]:
        """The head of BottleneckArgs."""
        height, out_height = s.bottom - s.top, s.out_bottom - s.out_top
        return self.dtype is torch.float64, s.count, height, self.width, self.wide, out_height, self.out_width

    def rows_of(self, s: Strip) -> Tensor:
        """The strip's rows of x as a matrix."""
        return self.x[s.samples, s.top : s.bottom].view(-1, self.x.shape[-1])

    def as_factor(self, t: Tensor) -> Tensor:
        """Values of the strip in the dtype of x; valid until the next product of the strip."""
        return t if t.dtype is self.x.dtype else self.factor[: len(t)].copy_(t)

    def forward(self, s: Strip) -> tuple[Tensor, Tensor]:
        """(h, y) of the strip, both after their ReLU: (pixels, wide)."""
        x = self.rows_of(s)
        h = self.h[: len(x)]
        if self.linear:
            linear.forward(x, self.weight1, self.bias1, None, "relu", h, self.packed1)
        else:
            product = torch.mm(x, self.weight1.t(), out=self.factor[: len(x)])
            bias_act.forward(product, self.bias1, "relu", out=h)
        sizes = self.sizes(s)
        y = self.y[: s.count * (s.out_bottom - s.out_top) * self.out_width]
        native.call("bottleneck_forward", *sizes, s.above, self.taps, self.bias2, h, y, 0, 0, 0, 0, 0, 0)
        return h, y


def forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, weight3: Tensor, bias3: Tensor
) -> Tensor:
    """See the public function; one dtype throughout."""
    wide = _Wide(x.contiguous(), weight1, bias1, weight2, bias2)
    out = x.new_empty(x.shape[0], (x.shape[1] + 1) // 2, wide.out_width, weight3.shape[0])
    packed3 = linear.pack(weight3) if wide.linear and len(wide.strips) > 1 else None
    for s in wide.strips:
        _, y = wide.forward(s)
        part = out[s.samples, s.out_top : s.out_bottom].view(len(y), -1)
        if wide.linear and linear.fits(weight3, bias3):
            linear.forward(y, weight3, bias3, None, "none", part, packed3)
        else:
            torch.addmm(bias3, wide.as_factor(y), weight3.t(), out=part)
    return out


def backward(
    gout: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    weight3: Tensor,
    bias3: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, d weight1, d bias1, d weight2, d bias2, d weight3, d bias3."""
    wide = _Wide(x.contiguous(), weight1, bias1, weight2, bias2)
    gout = gout.contiguous()
    dx = torch.empty_like(wide.x)
    dw1, db1, dw3 = (torch.zeros_like(t, dtype=wide.dtype) for t in (weight1, bias1, weight3))
    dtaps, db2 = torch.zeros_like(wide.taps), torch.zeros_like(wide.bias2)
    g = torch.empty_like(wide.y)
    g_above = x.new_empty(wide.out_width, wide.wide, dtype=wide.dtype)
    for s in wide.strips:
        h, y = wide.forward(s)
        gpart = gout[s.samples, s.out_top : s.out_bottom].view(len(y), -1)
        _add_product(dw3, gpart.t(), wide.as_factor(y))
        if g.dtype is x.dtype:
            torch.mm(gpart, weight3, out=g[: len(y)])
        else:
            g[: len(y)].copy_(torch.mm(gpart, weight3, out=wide.factor[: len(y)]))
        above, gradients = g_above if s.above else None, (dtaps, db2, db1)
        fields = (s.above, wide.taps, wide.bias2, h, y, s.last, g, above, *gradients)
        native.call("bottleneck_backward", *wide.sizes(s), *fields)
        if not s.last:
            g_above.copy_(g[len(y) - wide.out_width : len(y)])
            h = h[: len(h) - wide.width]  # the last row is finished in the next strip
        h = wide.as_factor(h)
        _add_product(dw1, h.t(), wide.rows_of(s)[: len(h)])
        end = s.bottom if s.last else s.bottom - 1
        torch.mm(h, weight1, out=dx[s.samples, s.top : end].view(len(h), -1))
    db3 = gout.flatten(0, 2).sum(0, dtype=wide.dtype)
    return dx, dw1, db1, dtaps.t().reshape(weight2.shape), db2, dw3, db3


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype is a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(torch.mm(a, b))
