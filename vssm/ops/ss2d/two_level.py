"""SS2D in plain torch: sequences gathered slab by slab, the two-level scan, outputs scattered back.

Layout (B, K, L, C) as in selective_scan/two_level.py. `order` (K, L) is the raster position that route k visits at
time t; its inverse brings outputs back. Inputs have the compute dtype; shapes as in the public function.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.routes import visit_order
from vssm.ops.selective_scan.two_level import gradients, slabs, states


def _rows(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as pixels (B, L, C)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


def _gather(rows: Tensor, order: Tensor) -> Tensor:
    """(B, L, C) -> (B, K, L, C): what each route reads."""
    return rows[:, order.flatten()].unflatten(1, tuple(order.shape))


def _gather_per_route(rows: Tensor, order: Tensor) -> Tensor:
    """(B, L, K, P) -> (B, K, L, P): route k reads its own block."""
    return torch.stack([rows[:, order[k], k] for k in range(order.shape[0])], dim=1)


def _merged(sequences: Tensor, inverse: Tensor) -> Tensor:
    """(B, K, L, C) -> (B, L, C): every route put back in raster order, and their sum."""
    total = sequences[:, 0, inverse[0]]
    for k in range(1, len(inverse)):
        total += sequences[:, k, inverse[k]]
    return total


class _Slab:
    """One slab of the batch, gathered and projected: what forward and backward share."""

    def __init__(self, x, proj, dt_weight, dt_bias, A, order):
        K, C, R = dt_weight.shape
        self.order, self.A = order, A.unflatten(0, (K, C))
        blocks = proj.reshape(proj.shape[0], -1, K, proj.shape[-1] // K)
        low, self.B, self.C = _gather_per_route(blocks, order).split([R, A.shape[1], A.shape[1]], dim=-1)
        self.low = low
        self.u = _gather(_rows(x), order)
        self.raw = torch.matmul(low, dt_weight.transpose(1, 2)).add_(dt_bias[:, None])
        self.dt = F.softplus(self.raw)
        self.h = states(self.u, self.dt, self.A, self.B, None)

    def readout(self) -> Tensor:
        """<C, h> (B, K, L, C); may overwrite h."""
        if self.h.shape[-1] == 1:  # a sum over one element would be one more pass
            return self.h.squeeze(-1).mul_(self.C)
        return (self.h * self.C.unsqueeze(3)).sum(-1)


def _order(routes: list[int], x: Tensor) -> Tensor:
    return visit_order(tuple(routes), *x.shape[2:]).to(device=x.device, dtype=torch.long)


def _inverse(order: Tensor) -> Tensor:
    """(K, L): when route k visits a raster position."""
    times = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, times)


def _walk(x, dt_weight, A):
    K, C, _ = dt_weight.shape
    return slabs(x.shape[0], K * C * x.shape[2] * x.shape[3] * A.shape[1])


def forward(x, proj, dt_weight, dt_bias, A, D, routes):
    """y (B, C, H, W) in channels_last memory."""
    batch, channels, height, width = x.shape
    order = _order(routes, x)
    inverse = _inverse(order)
    y = x.new_empty(batch, height, width, channels)
    for s in _walk(x, dt_weight, A):
        slab = _Slab(x[s], proj[s], dt_weight, dt_bias, A, order)
        out = slab.readout()
        y[s] = _merged(out, inverse).view(-1, height, width, channels)
    if D is not None:
        y.addcmul_(x.permute(0, 2, 3, 1), D.view(-1, channels).sum(0))
    return y.permute(0, 3, 1, 2)


def states_forward(x, proj, dt_weight, dt_bias, A, routes):
    """h (B, K, C, N, H, W); its memory is (B, K, N, H, W, C)."""
    batch, channels, height, width = x.shape
    order = _order(routes, x)
    K, N = order.shape[0], A.shape[1]
    inverse = _inverse(order)
    h = x.new_empty(batch, K, N, height * width, channels)
    for s in _walk(x, dt_weight, A):
        slab = _Slab(x[s], proj[s], dt_weight, dt_bias, A, order)
        for k in range(K):
            h[s, k] = slab.h[:, k, inverse[k]].permute(0, 3, 1, 2)
    return h.view(batch, K, N, height, width, channels).permute(0, 1, 5, 2, 3, 4)


def backward(gy, x, proj, dt_weight, dt_bias, A, D, routes):
    """dx, dproj, d dt_weight, d dt_bias, dA, dD."""
    order = _order(routes, x)
    grads = _Gradients(x, proj, dt_weight, dt_bias, A)
    for s in _walk(x, dt_weight, A):
        slab = _Slab(x[s], proj[s], dt_weight, dt_bias, A, order)
        g = _gather(_rows(gy[s]), order)
        dC = torch.einsum("bklcn,bklc->bkln", slab.h, g)
        grads.add(s, slab, g.unsqueeze(-1) * slab.C.unsqueeze(3), dt_weight, dC)
    dx = grads.dx.permute(0, 3, 1, 2)
    dD = None
    if D is not None:
        skip = D.view(len(order), -1)
        dx = dx + gy * skip.sum(0)[:, None, None]
        dD = (gy * x).sum(dim=(0, 2, 3)).expand_as(skip).flatten().contiguous()
    return dx, grads.dproj, grads.dweight, grads.dbias, grads.dA, dD


def states_backward(gh, x, proj, dt_weight, dt_bias, A, routes):
    """dx, dproj, d dt_weight, d dt_bias, dA, given gh (B, K, C, N, H, W)."""
    order = _order(routes, x)
    grads = _Gradients(x, proj, dt_weight, dt_bias, A)
    for s in _walk(x, dt_weight, A):
        slab = _Slab(x[s], proj[s], dt_weight, dt_bias, A, order)
        g = gh[s].flatten(4).permute(0, 1, 4, 2, 3)  # (B, K, L, C, N), raster order
        g = torch.stack([g[:, k, order[k]] for k in range(len(order))], dim=1)
        grads.add(s, slab, g, dt_weight, None)
    return grads.dx.permute(0, 3, 1, 2), grads.dproj, grads.dweight, grads.dbias, grads.dA


class _Gradients:
    """Gradients accumulated slab by slab."""

    def __init__(self, x, proj, dt_weight, dt_bias, A):
        batch, channels, height, width = x.shape
        self.dx = x.new_empty(batch, height, width, channels)
        self.dproj = torch.empty_like(proj, memory_format=torch.contiguous_format)
        self.dweight, self.dbias, self.dA = (torch.zeros_like(t) for t in (dt_weight, dt_bias, A))

    def add(self, s: slice, slab: _Slab, gh: Tensor, dt_weight: Tensor, dC: Tensor | None) -> None:
        du, ddt, dA, dB, _ = gradients(gh, slab.h, slab.u, slab.dt, slab.A, slab.B, None)
        draw = ddt * torch.where(slab.raw > 20, torch.ones_like(slab.raw), torch.sigmoid(slab.raw))
        dlow = torch.matmul(draw, dt_weight)
        self.dweight += torch.einsum("bklc,bklr->kcr", draw, slab.low)
        self.dbias += draw.sum(dim=(0, 2))
        self.dA += dA.flatten(0, 1)
        blocks = torch.cat([dlow, dB, torch.zeros_like(dB) if dC is None else dC], dim=-1)
        inverse = _inverse(slab.order)
        K = len(inverse)
        self.dx[s] = _merged(du, inverse).view(self.dx[s].shape)
        dproj = torch.stack([blocks[:, k, inverse[k]] for k in range(K)], dim=2)
        self.dproj[s] = dproj.view(self.dproj[s].shape)
