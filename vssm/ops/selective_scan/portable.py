"""The selective scan in torch's own operators, for programs that run without this package.

L = M T steps are cut into M chunks of T steps, and all chunks advance together, so that loops take 2 T + M rounds over
long contiguous rows:

    1. every chunk from a zero state: its last state
    2. chunk after chunk: the state that each inherits, by the product of its decays, exp(A sum of dt)
    3. every chunk again, from what it inherits: its states, or what C reads out of them

No division, and no product of decays but that of a whole chunk, which may vanish: as stable as the plain loop. Layout
throughout: (T, K, M b, C), b for the batch; states have N before C.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.selective_scan.reference import held

# Chunks of a sequence; `vssm.ops.ss2d.portable` has one for each row of the map.
CHUNKS = 16

Step = Callable[..., tuple[Tensor, ...]]


def chunked(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None,
    start: Tensor | None,
    batch: int,
    zoh: bool,
    unrolled: bool,
) -> tuple[Tensor, Tensor]:
    """u, dt (T, K, M b, C); A (K, C, N); B, C (T, K, M b, N); start (K, b, N, C) or None; batch is b.

    Returns y (T, K, M b, C), or the states (T, K, M b, N, C) where C is None; and the last state (K, b, N, C).
    """
    A = A.transpose(1, 2).unsqueeze(1)  # (K, 1, N, C)
    exponent = dt.unsqueeze(-2) * A
    if zoh:
        drive = held(dt.unsqueeze(-2), A) * u.unsqueeze(-2) * B.unsqueeze(-1)
    else:
        drive = (dt * u).unsqueeze(-2) * B.unsqueeze(-1)
    decay = torch.exp(exponent)
    zero = drive.new_zeros(drive.shape[1:])
    (ends, *_) = _loop(_advance, zero, (decay, drive), unrolled)
    ends, products = (
        one.view(one.shape[0], -1, batch, *one.shape[2:]).movedim(1, 0) for one in (ends, torch.exp(exponent.sum(0)))
    )
    start = ends.new_zeros(ends.shape[1:]) if start is None else start
    last, inherited = _loop(_inherit, start, (products, ends), unrolled)
    inherited = inherited.movedim(0, 1).contiguous().view(zero.shape)
    if C is None:
        return _loop(_advance_and_keep, inherited, (decay, drive), unrolled)[1], last
    return _loop(_advance_and_read, inherited, (decay, drive, C.unsqueeze(-1)), unrolled)[1], last


# The state is first in its products: OpenVINO computes `Mul(input, state)` in the body of a Scan wrongly. What is kept
# of a step must be no alias of the state. The bodies take no tensor from outside: torch's exporter to ONNX mixes these
# up with free sizes (torch 2.13).


def _advance(state: Tensor, decay: Tensor, drive: Tensor) -> tuple[Tensor, ...]:
    return (state * decay + drive,)


def _inherit(state: Tensor, decay: Tensor, drive: Tensor) -> tuple[Tensor, ...]:
    return state * decay + drive, state.clone()


def _advance_and_keep(state: Tensor, decay: Tensor, drive: Tensor) -> tuple[Tensor, ...]:
    state = state * decay + drive
    return state, state.clone()


def _advance_and_read(state: Tensor, decay: Tensor, drive: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    state = state * decay + drive
    y = state * C
    return state, y.squeeze(-2) if y.shape[-2] == 1 else y.sum(-2)


def _loop(step: Step, state: Tensor, inputs: tuple[Tensor, ...], unrolled: bool) -> tuple[Tensor, ...]:
    """The state after all steps along the first dimension of the inputs, and what each step gives, stacked."""
    if unrolled:
        kept: list[Tensor] = []
        for now in zip(*(one.unbind(0) for one in inputs), strict=True):
            state, *given = step(state, *now)
            kept.extend(given)
        return (state, torch.stack(kept)) if kept else (state,)
    # No public home yet. Its public form, `scan`, would go through torch.compile, whose cache of other sizes then puts
    # conditions on free ones.
    from torch._higher_order_ops.scan import scan_op

    # A state in memory of its own: torch compares strides, and what is contiguous may have any along a dimension of 1.
    state = state.clone(memory_format=torch.contiguous_format)
    return tuple(scan_op(step, [state], [one.contiguous() for one in inputs], ()))


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    zoh: bool = False,
    unrolled: bool = False,
) -> tuple[Tensor, Tensor]:
    """`reference.scan`, in chunks."""
    y, last = _scan(u, dt, A, B, C, dt_bias, initial_state, dt_softplus, zoh, unrolled)
    y = _joined(y, u).flatten(2).movedim(0, -1)  # (b, K*C, L)
    if D is not None:
        y = y + D[:, None] * u
    return y, last.permute(1, 0, 3, 2).flatten(1, 2)


def states(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    zoh: bool = False,
    unrolled: bool = False,
) -> Tensor:
    """`reference.states`, in chunks."""
    h, _ = _scan(u, dt, A, B, None, dt_bias, initial_state, dt_softplus, zoh, unrolled)
    return _joined(h, u).permute(1, 2, 4, 3, 0).flatten(1, 2)


def _scan(u, dt, A, B, C, dt_bias, initial_state, dt_softplus, zoh, unrolled) -> tuple[Tensor, Tensor]:
    K = B.shape[1]
    dt = dt if dt_bias is None else dt + dt_bias[:, None]
    dt = F.softplus(dt) if dt_softplus else dt
    batch = u.shape[0]
    u, dt = (_chunks(one.unflatten(1, (K, -1)).movedim(-1, 0)) for one in (u, dt))
    B = _chunks(B.movedim(-1, 0))
    C = None if C is None else _chunks(C.movedim(-1, 0))
    start = None if initial_state is None else initial_state.unflatten(1, (K, -1)).permute(1, 0, 3, 2)
    return chunked(u, dt, A.unflatten(0, (K, -1)), B, C, start, batch, zoh, unrolled)


def joined(x: Tensor, dim: int) -> Tensor:
    """Dimensions `dim` and the next as one, in memory of its own. torch.export asks for strides in `contiguous`, and
    leaves strides that it cannot reason about in `flatten`, when sizes are free."""
    shape = x.shape
    x = x.clone(memory_format=torch.contiguous_format)
    return x.view(*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :])


def _chunks(x: Tensor) -> Tensor:
    """(L, b, K, C) -> (T, K, M b, C), padded with zeros: steps of length 0 leave the state as it is."""
    length = x.shape[0]
    chunks = CHUNKS if not isinstance(length, int) else min(CHUNKS, length)
    steps = (length + chunks - 1) // chunks
    padded = F.pad(x, (0, 0) * (x.dim() - 1) + (0, chunks * steps - length))
    return joined(padded.view(chunks, steps, *x.shape[1:]).permute(1, 3, 0, 2, 4), 2)


def _joined(y: Tensor, like: Tensor) -> Tensor:
    """(T, K, M b, ...) -> (L, b, K, ...), without the padding; `like` is (b, K*C, L)."""
    batch, _, length = like.shape
    y = y.view(*y.shape[:2], -1, batch, *y.shape[3:])
    return joined(y.permute(2, 0, 3, 1, *range(4, y.dim())), 0)[:length]
