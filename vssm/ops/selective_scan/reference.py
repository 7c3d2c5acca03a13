"""Reference implementation of the selective scan, the ground truth for all backends.

VMamba (arXiv 2401.10166) section 3, equations 3 and 4. A is exponentiated exactly, and B enters as dt B (euler) or as
(exp(dt A) - 1) / A B (zoh), see `vssm.ops.discretization`.
"""

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
) -> Tensor:
    """h (B, K*C, N, L) of   h_t = exp(dt_t A) h_{t-1} + w_t B_t u_t.   Shapes as in the public function."""
    batch, channels, length = u.shape
    K, N = B.shape[1], A.shape[1]
    if dt_bias is not None:
        dt = dt + dt_bias[:, None]
    if dt_softplus:
        dt = F.softplus(dt)
    h = u.new_zeros(batch, channels, N) if initial_state is None else initial_state
    B = B.repeat_interleave(channels // K, dim=1)  # (B, K*C, N, L): the channels of a group share it
    history = []
    for t in range(length):
        decay = torch.exp(dt[:, :, t, None] * A)
        weight = held(dt[:, :, t, None], A) if zoh else dt[:, :, t, None]
        h = decay * h + weight * B[..., t] * u[:, :, t, None]
        history.append(h)
    return torch.stack(history, dim=-1)


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
) -> tuple[Tensor, Tensor]:
    """y_t = <C_t, h_t> + D u_t (B, K*C, L), and the last state (B, K*C, N)."""
    h = states(u, dt, A, B, dt_bias, initial_state, dt_softplus, zoh)
    C = C.repeat_interleave(u.shape[1] // C.shape[1], dim=1)
    y = (C * h).sum(dim=2)
    if D is not None:
        y = y + D[:, None] * u
    return y, h[..., -1]
