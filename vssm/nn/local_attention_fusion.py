"""Neighbourhood attention over states (Hassani et al. 2022, arXiv 2204.07143) as a mixer's `state_fn`."""

# Tensor.unflatten has no annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn.precision import FullPrecision, StateConv1x1
from vssm.nn.states import mean_state

__all__ = ["LocalAttentionFusion"]


class LocalAttentionFusion(FullPrecision):
    """Replace every state by a mean of the states around it, weighted by attention.

        f(p) = sum_q softmax_q(<query(p), key(q)> / sqrt(d) + bias[q - p]) h(q)

    q runs over the pixels within `radius` rows and columns of p.

    h (B, K, C, N, H, W) -> the same shape and dtype. Queries and keys of a pixel are linear in its state, averaged over
    N; values are the states themselves. Neighbours outside of the map have no weight. Each route has its own
    projections and biases. At the start the projections are torch's default and the biases 0.

    Computed window by window, each with a halo of `radius` pixels around it: plain matrix products, at 4 times the
    memory of h for a window of 4 and a radius of 2.

    Args:
        dim: channels C of the mixer.
        routes: K.
        d_state: N.
        radius: 2 for neighbourhoods of 5 x 5.
        heads: must divide dim; None for about dim / 32.
        window: side of the windows; changes cost and memory, not the result.
    """

    def __init__(
        self,
        dim: int,
        routes: int = 1,
        d_state: int = 1,
        radius: int = 2,
        heads: int | None = None,
        window: int = 4,
    ):
        super().__init__()
        if radius < 0 or window < 1:
            raise ValueError(f"radius must not be negative and window at least 1, got {radius} and {window}")
        heads = math.gcd(dim, max(1, dim // 32)) if heads is None else heads
        if heads < 1 or dim % heads != 0:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        self.routes, self.radius, self.window, self.heads = routes, radius, window, heads
        self.qk_dim = 8  # of a head
        self.outside = -1e9  # a row of minus infinities alone, beyond the map, would make NaN
        self.qk = StateConv1x1(routes * dim, routes * 2 * heads * self.qk_dim, routes, bias=False)
        self.bias = nn.Parameter(torch.zeros(routes, heads, 2 * radius + 1, 2 * radius + 1))

    def _fuse(self, h: Tensor, values: Tensor | None = None) -> Tensor:
        batch, routes, channels, states, height, width = h.shape
        w, r = self.window, self.radius
        bottom, right = (w - height % w) % w, (w - width % w) % w
        rows, columns = (height + bottom) // w, (width + right) // w

        qk = self.qk(mean_state(h)).unflatten(1, [routes, 2, self.heads * self.qk_dim])
        queries = self._windows(F.pad(qk[:, :, 0].flatten(0, 1), [0, right, 0, bottom]), w)
        halo = [r, right + r, r, bottom + r]
        keys = self._windows(F.pad(qk[:, :, 1].flatten(0, 1), halo), w + 2 * r)
        read = h if values is None else values
        windows = self._windows(F.pad(read.flatten(2, 3).flatten(0, 1), halo), w + 2 * r)

        logits = (
            torch.matmul(queries, keys.transpose(-1, -2)) * self.qk_dim**-0.5
        )  # (B*K, windows, heads, w*w, (w+2r)^2)
        logits = logits.unflatten(0, [batch, routes]) + self._near(h) + self._inside(h, rows, columns)
        fused = torch.matmul(logits.softmax(-1).flatten(0, 1), windows)  # (B*K, windows, heads, w*w, C/heads*N)

        fused = fused.unflatten(1, [rows, columns]).unflatten(4, [w, w]).permute(0, 3, 6, 1, 4, 2, 5)
        fused = fused.reshape(batch, routes, channels, states, rows * w, columns * w)
        return fused[..., :height, :width]

    def _windows(self, x: Tensor, side: int) -> Tensor:
        """A padded map (M, heads*D, H, W) as windows (M, windows, heads, side*side, D), one every `window` pixels."""
        x = x.unflatten(1, [self.heads, x.shape[1] // self.heads])
        x = x.unfold(3, side, self.window).unfold(4, side, self.window)  # (M, heads, D, rows, columns, side, side)
        return x.permute(0, 3, 4, 1, 5, 6, 2).flatten(4, 5).flatten(1, 2)

    def _near(self, h: Tensor) -> Tensor:
        """(K, 1, heads, w*w, (w+2r)^2): the bias of each key for each query; `outside` the neighbourhood."""
        w, r = self.window, self.radius
        apart = torch.arange(w + 2 * r, device=h.device) - torch.arange(w, device=h.device)[:, None]  # (w, w+2r), r: 0
        near = (apart >= 0) & (apart <= 2 * r)
        apart = apart.clamp(0, 2 * r)
        index = (apart[:, None, :, None] * (2 * r + 1) + apart[None, :, None, :]).flatten()
        bias = self.bias.to(h.dtype).flatten(2)[:, :, index].unflatten(2, [w * w, (w + 2 * r) * (w + 2 * r)])
        both = (near[:, None, :, None] & near[None, :, None, :]).flatten(0, 1).flatten(1)
        return bias.masked_fill(~both, self.outside).unsqueeze(1)

    def _inside(self, h: Tensor, rows: int, columns: int) -> Tensor:
        """(windows, 1, 1, (w+2r)^2): 0 for keys on the map, `outside` for others."""
        w, r = self.window, self.radius
        around = torch.arange(-r, w + r, device=h.device)
        y = torch.arange(rows, device=h.device)[:, None] * w + around
        x = torch.arange(columns, device=h.device)[:, None] * w + around
        on_rows, on_columns = (y >= 0) & (y < h.shape[4]), (x >= 0) & (x < h.shape[5])
        inside = (on_rows[:, None, :, None] & on_columns[None, :, None, :]).flatten(0, 1).flatten(1)
        return torch.zeros(inside.shape, dtype=h.dtype, device=h.device).masked_fill(~inside, self.outside)[
            :, None, None
        ]

    def extra_repr(self) -> str:
        return f"radius={self.radius}, heads={self.heads}"
