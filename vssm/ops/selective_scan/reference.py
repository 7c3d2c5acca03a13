"""Reference implementation of the selective scan, the ground truth for all backends.

VMamba (arXiv 2401.10166) section 3, equations 3 and 4. A is exponentiated exactly, and B enters as dt B (euler) or as
(exp(dt A) - 1) / A B (zoh), see `vssm.ops.discretization`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def states(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    zoh: bool = False,
    form: str = "steps",
) -> Tensor:
    """h (B, K*C, N, L) of   h_t = exp(dt_t A) h_{t-1} + w_t B_t u_t.   Shapes as in the public function.

    form: "steps", one step of time after another; "blocks", about 2 sqrt(L) steps; "scan", torch's own scan.
    """
    batch, channels, length = u.shape
    K, N = B.shape[1], A.shape[1]
    if dt_bias is not None:
        dt = dt + dt_bias[:, None]
    if dt_softplus:
        dt = F.softplus(dt)
    h = u.new_zeros(batch, channels, N) if initial_state is None else initial_state
    B = B.repeat_interleave(channels // K, dim=1)  # (B, K*C, N, L): the channels of a group share it
    if form != "steps":
        decay, steps = torch.exp(dt.unsqueeze(2) * A.unsqueeze(-1)), dt.unsqueeze(2)
        weight = held(steps, A.unsqueeze(-1)) if zoh else steps
        return (_blocked if form == "blocks" else _scanned)(decay, weight * B * u.unsqueeze(2), h)
    history = []
    for t in range(length):
        decay = torch.exp(dt[:, :, t, None] * A)
        weight = held(dt[:, :, t, None], A) if zoh else dt[:, :, t, None]
        h = decay * h + weight * B[..., t] * u[:, :, t, None]
        history.append(h)
    return torch.stack(history, dim=-1)


def _blocked(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along the last dim: all blocks of about sqrt(L) steps at once as if each began at zero,
    then what each block inherits from those before it."""
    length = a.shape[-1]
    steps = max(1, math.isqrt(length))
    padding = -length % steps
    a = F.pad(a, (0, padding), value=1.0).unflatten(-1, (-1, steps))
    b = F.pad(b, (0, padding)).unflatten(-1, (-1, steps))
    states, decays = [b[..., 0]], [a[..., 0]]
    for t in range(1, steps):
        states.append(a[..., t] * states[-1] + b[..., t])
        decays.append(a[..., t] * decays[-1])
    inherited = [h]
    for block in range(a.shape[-2] - 1):
        inherited.append(decays[-1][..., block] * inherited[-1] + states[-1][..., block])
    fused = torch.stack(states, -1) + torch.stack(decays, -1) * torch.stack(inherited, -1).unsqueeze(-1)
    return fused.flatten(-2)[..., :length]


def _scanned(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """The same by torch's higher-order `scan`, which exports as one node; eager it is slow.

    The state is first in the product: OpenVINO computes `Mul(input, state)` in the body of a Scan wrongly.
    """
    from torch._higher_order_ops.scan import scan  # no public home yet

    def step(state: Tensor, now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        decay, weighted = now
        state = state * decay + weighted
        return state, state.clone()

    _, states = scan(step, h, (a.movedim(-1, 0).contiguous(), b.movedim(-1, 0).contiguous()), dim=0)
    return states.movedim(0, -1).contiguous()


def held(dt: Tensor, A: Tensor) -> Tensor:
    """(exp(dt A) - 1) / A; near dt A = 0 its series, which A = 0 has too."""
    z = dt * A
    near = z.abs() < 1e-3
    safe = torch.where(near, torch.ones_like(z), z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5)))
    return dt * torch.where(near, series, torch.expm1(safe) / safe)


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
    form: str = "steps",
) -> tuple[Tensor, Tensor]:
    """y_t = <C_t, h_t> + D u_t (B, K*C, L), and the last state (B, K*C, N)."""
    h = states(u, dt, A, B, dt_bias, initial_state, dt_softplus, zoh, form)
    C = C.repeat_interleave(u.shape[1] // C.shape[1], dim=1)
    y = (C * h).sum(dim=2)
    if D is not None:
        y = y + D[:, None] * u
    return y, h[..., -1]
