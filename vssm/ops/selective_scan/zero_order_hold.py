"""Zero-order hold by the kernels of the Euler step: u times phi(dt A), every state in a group of its own.

Composed of differentiable operators, so that its gradients are exact and every path has it. Shapes as in the public
functions, one dtype throughout; a group (k, n) has the C channels of group k and one state.
"""

import torch.nn.functional as F
from torch import Tensor

from vssm.ops.discretization import phi


def scan(operator, u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus) -> tuple[Tensor, Tensor]:
    """(y (B, K*C, L), last state (B, K*C, N)); `operator` is `selective_scan`'s."""
    driven, steps, A1, B1, start = _one_state_each(u, dt, A, B, dt_bias, dt_softplus, initial_state)
    C1 = C.flatten(1, 2).unsqueeze(2)
    y, last = operator(driven, steps, A1, B1, C1, None, None, start, False)
    K, N = B.shape[1:3]
    y = y.unflatten(1, (K, N, -1)).sum(2).flatten(1, 2)
    last = last.unflatten(1, (K, N, -1)).transpose(2, 3).flatten(1, 2).squeeze(-1)
    return (y if D is None else y + D[:, None] * u), last


def states(operator, u, dt, A, B, dt_bias, initial_state, dt_softplus) -> Tensor:
    """h (B, K*C, N, L); `operator` is `selective_scan_states`'s."""
    driven, steps, A1, B1, start = _one_state_each(u, dt, A, B, dt_bias, dt_softplus, initial_state)
    h = operator(driven, steps, A1, B1, None, start, False)
    return h.squeeze(2).unflatten(1, (*B.shape[1:3], -1)).transpose(2, 3).flatten(1, 2)


def _one_state_each(u, dt, A, B, dt_bias, dt_softplus, initial_state):
    """u phi(dt A) and the step sizes (B, K*N*C, L), A (K*N*C, 1), B (B, K*N, 1, L), initial_state (B, K*N*C, 1)."""
    K, N = B.shape[1:3]
    steps = dt if dt_bias is None else dt + dt_bias[:, None]
    steps = (F.softplus(steps) if dt_softplus else steps).unflatten(1, (K, 1, -1))  # (B, K, 1, C, L)
    A = A.unflatten(0, (K, -1)).transpose(1, 2)  # (K, N, C)
    driven = u.unflatten(1, (K, 1, -1)) * phi(steps * A.unsqueeze(-1))
    start = None
    if initial_state is not None:
        start = initial_state.unflatten(1, (K, -1)).transpose(2, 3).flatten(1).unsqueeze(-1)
    steps = steps.expand(-1, -1, N, -1, -1)
    return driven.flatten(1, 3), steps.flatten(1, 3), A.flatten().unsqueeze(-1), B.flatten(1, 2).unsqueeze(2), start
