"""SS2D with zero-order hold by the kernels of the Euler step: one call per route and state, on x times phi(dt A).

phi belongs to a pixel, whatever route visits it, so the input of each call is a map. Composed of differentiable
operators: gradients are exact and every path has it. The projection of dt runs twice, here and in the kernel. All
tensors have one dtype.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.discretization import phi
from vssm.ops.routes import Route, decode, encode


def forward(operator, x, proj, dt_weight, dt_bias, A, D, codes) -> Tensor:
    """y (B, C, H, W); `operator` is `ss2d`'s."""
    y = None
    for driven, *weights, route in _one_state_each(x, proj, dt_weight, dt_bias, A, decode(codes)):
        part = operator(driven, *weights, None, encode((route,)))
        y = part if y is None else y + part
    assert y is not None
    return y if D is None else torch.addcmul(y, x, D.view(len(codes) // 2, -1).sum(0)[:, None, None])


def states(operator, x, proj, dt_weight, dt_bias, A, codes) -> Tensor:
    """h (B, K, C, N, H, W), whose memory is (B, K, N, H, W, C); `operator` is `ss2d_states`'s."""
    h = [
        operator(driven, *weights, encode((route,))).squeeze(3).squeeze(1)
        for driven, *weights, route in _one_state_each(x, proj, dt_weight, dt_bias, A, decode(codes))
    ]
    stacked = torch.stack([part.permute(0, 2, 3, 1) for part in h], dim=1)  # (B, K*N, H, W, C)
    return stacked.unflatten(1, (len(codes) // 2, -1)).permute(0, 1, 5, 2, 3, 4)


def _one_state_each(
    x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, routes: tuple[Route, ...]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Route]]:
    """For every route and state: x phi(dt A), and proj, dt_weight, dt_bias and A as of one group with one state."""
    rank, N = dt_weight.shape[2], A.shape[1]
    pixels = x.permute(0, 2, 3, 1)
    for k, route in enumerate(routes):
        low, B, C = proj.unflatten(-1, (len(routes), -1))[..., k, :].split([rank, N, N], dim=-1)
        steps = F.softplus(F.linear(low, dt_weight[k], dt_bias[k]))
        A_k = A.unflatten(0, (len(routes), -1))[k]
        for n in range(N):
            driven = (pixels * phi(steps * A_k[:, n])).permute(0, 3, 1, 2)
            proj_n = torch.cat([low, B[..., n : n + 1], C[..., n : n + 1]], dim=-1)
            yield driven, proj_n, dt_weight[k : k + 1], dt_bias[k : k + 1], A_k[:, n : n + 1], route
