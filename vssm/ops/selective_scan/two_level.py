"""The selective scan in plain torch: a two-level blocked scan with its own backward.

The sequence is cut into about sqrt(L) chunks. All chunks advance together, one time step per tensor operation, as if
each began at zero; then the chunks' final states are chained; then what each chunk inherits is added. That is
O(sqrt(L)) torch calls instead of L, and it needs no compiler. Layout throughout: (B, K, L, C, N), the channels of a
time step contiguous, so every call touches long contiguous rows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of one (B, K, L, C, N) tensor that are worked on at once; the batch is walked in slabs of that size, so
# that memory stays bounded (32 MB per float32 tensor) and slabs stay nearer to the caches.
SLAB_ELEMENTS = 1 << 23


def linear_recurrence(a: Tensor, b: Tensor, h0: Tensor | None, reverse: bool = False) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along dim 1 of (M, L, S); with `reverse`, h_t = a_t h_{t+1} + b_t. May overwrite a, b.

    h0 (M, S) is the state before the first step (after the last one with `reverse`).
    """
    M, length, S = b.shape
    if h0 is not None:
        edge = length - 1 if reverse else 0
        b[:, edge] += a[:, edge] * h0
    T = max(1, math.isqrt(length))
    chunks = -(-length // T)
    if chunks * T != length:  # padding with a = 1, b = 0 carries a state unchanged
        pad = chunks * T - length
        a = torch.cat([a, a.new_ones(M, pad, S)], dim=1)
        b = torch.cat([b, b.new_zeros(M, pad, S)], dim=1)
    a = a.view(M, chunks, T, S)
    b = b.view(M, chunks, T, S)
    steps = range(T - 2, -1, -1) if reverse else range(1, T)
    back = 1 if reverse else -1
    for t in steps:
        b[:, :, t].addcmul_(a[:, :, t], b[:, :, t + back])
        a[:, :, t].mul_(a[:, :, t + back])
    last = 0 if reverse else T - 1
    order = range(chunks - 2, -1, -1) if reverse else range(1, chunks)
    inherited = torch.zeros_like(b[:, :, 0])
    carry = b[:, chunks - 1 if reverse else 0, last]
    for j in order:
        inherited[:, j] = carry
        carry = torch.addcmul(b[:, j, last], a[:, j, last], carry)
    return b.addcmul_(a, inherited.unsqueeze(2)).view(M, chunks * T, S)[:, :length]


def _decay_and_drive(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) and dt B u, both (B, K, L, C, N)."""
    decay = (dt.unsqueeze(-1) * A[:, None]).exp_()
    drive, B = (dt * u).unsqueeze(-1), B.unsqueeze(3)
    return decay, drive.mul_(B) if B.shape[-1] == 1 else drive * B


def states(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, h0: Tensor | None) -> Tensor:
    """States (B, K, L, C, N). u, dt (B, K, L, C), dt after softplus; A (K, C, N); B (B, K, L, N); h0 (B, K, C, N)."""
    decay, drive = _decay_and_drive(u, dt, A, B)
    batch, K, length, C, N = drive.shape
    flat_h0 = None if h0 is None else h0.reshape(batch * K, C * N)
    h = linear_recurrence(decay.reshape(batch * K, length, C * N), drive.reshape(batch * K, length, C * N), flat_h0)
    return h.reshape(batch, K, length, C, N)


def gradients(
    gh: Tensor, h: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `states` given gh = dloss/dh (overwritten) and h itself: du, ddt, dA, dB, dh0."""
    batch, K, length, C, N = h.shape
    decay = torch.exp(dt.unsqueeze(-1) * A[:, None])
    following = torch.cat([decay[:, :, 1:], decay.new_zeros(batch, K, 1, C, N)], dim=2)
    g = linear_recurrence(
        following.reshape(batch * K, length, C * N), gh.reshape(batch * K, length, C * N), None, reverse=True
    ).reshape(batch, K, length, C, N)
    first = h.new_zeros(batch, K, 1, C, N) if h0 is None else h0.unsqueeze(2)
    previous = torch.cat([first, h[:, :, :-1]], dim=2)
    dh0 = g[:, :, 0] * decay[:, :, 0]
    through_decay = decay.mul_(previous).mul_(g)  # g_t exp(dt A) h_{t-1}
    dA = (through_decay * dt.unsqueeze(-1)).sum(dim=(0, 2))
    gB = (g * B.unsqueeze(3)).sum(-1)
    ddt = (through_decay * A[:, None]).sum(-1) + gB * u
    du = gB * dt
    dB = torch.einsum("bklcn,bklc->bkln", g, dt * u)
    return du, ddt, dA, dB, dh0


def slabs(batch: int, elements_per_sample: int) -> list[slice]:
    """The batch cut so that one slab stays within SLAB_ELEMENTS."""
    step = max(1, SLAB_ELEMENTS // max(1, elements_per_sample))
    return [slice(i, min(i + step, batch)) for i in range(0, batch, step)]


# ---- the operator in its own layout: u, dt (B, K*C, L); A (K*C, N); B, C (B, K, N, L) ----


def _grouped(x: Tensor, K: int) -> Tensor:
    """(B, K*C, L) -> (B, K, L, C), contiguous."""
    return x.unflatten(1, (K, -1)).transpose(2, 3).contiguous()


def _ungrouped(x: Tensor) -> Tensor:
    """(B, K, L, C) -> (B, K*C, L)."""
    return x.transpose(2, 3).flatten(1, 2)


def _step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> tuple[Tensor, Tensor]:
    """(dt used by the recurrence, its derivative by the raw dt)."""
    raw = dt if dt_bias is None else dt + dt_bias[:, None]
    if not dt_softplus:
        return raw, torch.ones_like(raw)
    return F.softplus(raw), torch.where(raw > 20, torch.ones_like(raw), torch.sigmoid(raw))


def forward(u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus):
    """(y, last state); see the public function. All inputs already in the compute dtype."""
    batch, channels, length = u.shape
    N = A.shape[1]
    y = u.new_empty(batch, channels, length)
    last = u.new_empty(batch, channels, N)
    for s in slabs(batch, channels * length * N):
        h = _slab_states(u[s], dt[s], A, B[s], dt_bias, _part(initial_state, s), dt_softplus)
        y[s] = _ungrouped(torch.einsum("bklcn,bknl->bklc", h, C[s]))
        last[s] = h[:, :, -1].flatten(1, 2)
    if D is not None:
        y.addcmul_(u, D[:, None])
    return y, last


def states_forward(u, dt, A, B, dt_bias, initial_state, dt_softplus):
    """h (B, K*C, N, L)."""
    h = u.new_empty(*u.shape[:2], A.shape[1], u.shape[2])
    for s in slabs(u.shape[0], u.shape[1] * u.shape[2] * A.shape[1]):
        part = _slab_states(u[s], dt[s], A, B[s], dt_bias, _part(initial_state, s), dt_softplus)
        h[s] = part.permute(0, 1, 3, 4, 2).flatten(1, 2)
    return h


def backward(gy, glast, u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus):
    """du, ddt, dA, dB, dC, dD, d dt_bias, d initial_state; absent inputs give None."""

    def incoming(h, s):
        gh = _grouped(gy[s], K).unsqueeze(-1) * C[s].transpose(2, 3).unsqueeze(3)
        if glast is not None:
            gh[:, :, -1] += glast[s].unflatten(1, (K, -1))
        dC[s] = torch.einsum("bklcn,bklc->bknl", h, _grouped(gy[s], K))
        return gh

    K = B.shape[1]
    dC = torch.empty_like(C, memory_format=torch.contiguous_format)
    du, ddt, dA, dB, dbias, dh0 = _backward(incoming, u, dt, A, B, dt_bias, initial_state, dt_softplus)
    dD = None
    if D is not None:
        du.addcmul_(gy, D[:, None])
        dD = (gy * u).sum(dim=(0, 2))
    return du, ddt, dA, dB, dC, dD, dbias, dh0


def states_backward(gh, u, dt, A, B, dt_bias, initial_state, dt_softplus):
    """du, ddt, dA, dB, d dt_bias, d initial_state given gh (B, K*C, N, L)."""
    K = B.shape[1]

    def incoming(h, s):
        return gh[s].unflatten(1, (K, -1)).permute(0, 1, 4, 2, 3).contiguous()

    return _backward(incoming, u, dt, A, B, dt_bias, initial_state, dt_softplus)


def _part(x: Tensor | None, s: slice) -> Tensor | None:
    return None if x is None else x[s]


def _slab_states(u, dt, A, B, dt_bias, h0, dt_softplus):
    K = B.shape[1]
    steps, _ = _step_sizes(dt, dt_bias, dt_softplus)
    start = None if h0 is None else h0.unflatten(1, (K, -1))
    return states(_grouped(u, K), _grouped(steps, K), A.unflatten(0, (K, -1)), B.transpose(2, 3), start)


def _backward(incoming, u, dt, A, B, dt_bias, initial_state, dt_softplus):
    K = B.shape[1]
    du, ddt, dB = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, dt, B))
    dA = torch.zeros_like(A)
    dh0 = None if initial_state is None else torch.empty_like(initial_state)
    for s in slabs(u.shape[0], u.shape[1] * u.shape[2] * A.shape[1]):
        steps, slope = _step_sizes(dt[s], dt_bias, dt_softplus)
        h0 = None if initial_state is None else initial_state[s].unflatten(1, (K, -1))
        args = (_grouped(u[s], K), _grouped(steps, K), A.unflatten(0, (K, -1)), B[s].transpose(2, 3))
        h = states(*args, h0)
        gu, gdt, gA, gB, gh0 = gradients(incoming(h, s), h, *args, h0)
        du[s] = _ungrouped(gu)
        ddt[s] = _ungrouped(gdt) * slope
        dA += gA.flatten(0, 1)
        dB[s] = gB.transpose(2, 3)
        if dh0 is not None:
            dh0[s] = gh0.flatten(1, 2)
    dbias = None if dt_bias is None else ddt.sum(dim=(0, 2))
    return du, ddt, dA, dB, dbias, dh0
