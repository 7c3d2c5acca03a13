"""The cascade scan of VMamba's ablation (paper table 10; "1D cascade"): rows first, then columns.

Every row is a sequence, read in both directions (parameter groups 0 and 1); then every column of the result (groups 2
and 3). A parameter-free layer norm stands before each half. The output of the backward direction is added as it
comes, without being turned round again: so the released code does it, and so its weights were trained.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.selective_scan import selective_scan
from vssm.ops.ss2d.arguments import check_groups


def ss2d_cascade(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None = None,
    eps: float = 1e-5,
    discretization: str = "euler",
) -> Tensor:
    """y (B, C, H, W) in at least float32. Arguments and errors as `ss2d` with K = 4."""
    check_groups(x, x_proj_weight, dt_weight, dt_bias, A, D, 4, "the K = 4 groups of the cascade")
    y = _both_directions(x, 0, x_proj_weight, dt_weight, dt_bias, A, D, eps, discretization)
    columns = y.to(x.dtype).transpose(2, 3)
    return _both_directions(columns, 2, x_proj_weight, dt_weight, dt_bias, A, D, eps, discretization).transpose(2, 3)


def _both_directions(x, first, x_proj_weight, dt_weight, dt_bias, A, D, eps, discretization):
    """Scan every row of x (B, C, H, W) in both directions with groups `first` and `first + 1`; the sum of the two."""
    batch, channels, height, width = x.shape
    groups = slice(first, first + 2)
    rows = slice(first * channels, (first + 2) * channels)
    rank, state = dt_weight.shape[2], A.shape[1]
    x = F.layer_norm(x.permute(0, 2, 3, 1), (channels,), eps=eps).to(x.dtype)
    proj = F.linear(x, x_proj_weight[groups].flatten(0, 1).to(x.dtype))
    proj = proj.reshape(batch * height, width, 2, rank + 2 * state).permute(0, 2, 3, 1)
    u = x.reshape(batch * height, width, channels).transpose(1, 2)
    u = torch.stack([u, u.flip(-1)], dim=1)
    proj = torch.stack([proj[:, 0], proj[:, 1].flip(-1)], dim=1)
    low, B, C = proj.split([rank, state, state], dim=2)
    dt = torch.einsum("bkrl,kcr->bkcl", low, dt_weight[groups].to(low.dtype))
    skip = None if D is None else D[rows]
    bias = dt_bias[groups].flatten()
    y = selective_scan(
        u.flatten(1, 2), dt.flatten(1, 2), A[rows], B, C, skip, bias, True, discretization=discretization
    )
    assert isinstance(y, Tensor)
    y = y.unflatten(1, (2, channels)).sum(1)
    return y.view(batch, height, channels, width).transpose(1, 2)
