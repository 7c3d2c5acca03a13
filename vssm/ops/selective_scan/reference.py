"""The selective scan as the equation says it: the judge of every other path.

VMamba (arXiv 2401.10166) section 3, equations 3 and 4, with the discretisation of appendix A in which A is
exponentiated exactly and B enters as dt * B.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def states(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None, dt_softplus: bool, h: Tensor | None
) -> Tensor:
    """h (B, K*C, N, L) of   h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t.   Shapes as in the public function."""
    batch, channels, length = u.shape
    K, N = B.shape[1], A.shape[1]
    if dt_bias is not None:
        dt = dt + dt_bias[:, None]
    if dt_softplus:
        dt = F.softplus(dt)
    if h is None:
        h = u.new_zeros(batch, channels, N)
    B = B.repeat_interleave(channels // K, dim=1)  # (B, K*C, N, L): the channels of a group share it
    history = []
    for t in range(length):
        decay = torch.exp(dt[:, :, t, None] * A)
        h = decay * h + dt[:, :, t, None] * B[..., t] * u[:, :, t, None]
        history.append(h)
    return torch.stack(history, dim=-1)


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y_t = <C_t, h_t> + D u_t (B, K*C, L), and the last state (B, K*C, N)."""
    h = states(u, dt, A, B, dt_bias, dt_softplus, initial_state)
    C = C.repeat_interleave(u.shape[1] // C.shape[1], dim=1)
    y = (C * h).sum(dim=2)
    if D is not None:
        y = y + D[:, None] * u
    return y, h[..., -1]
