"""What the functions of this folder demand of their arguments: one ValueError that names the one that does not fit."""

from torch import Tensor

from vssm.ops import checks
from vssm.ops.routes import Route, encode


def check(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: tuple[Route, ...],
) -> None:
    """The arguments of `ss2d` and `ss2d_states`."""
    encode(routes)
    check_groups(x, x_proj_weight, dt_weight, dt_bias, A, D, len(routes), f"K = {len(routes)} routes")


def check_groups(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    K: int,
    groups: str,
) -> None:
    """A map, and the weights of K parameter groups; `groups` says what these are."""
    if x.dim() != 4:
        raise ValueError(f"x must be a map (B, C, H, W), got {tuple(x.shape)}")
    batch, channels, height, width = x.shape
    if batch == 0 or channels == 0 or height == 0 or width == 0:
        raise ValueError(f"x must not be empty, got {tuple(x.shape)}; every size must be at least 1")
    if dt_weight.dim() != 3 or dt_weight.shape[:2] != (K, channels):
        raise ValueError(f"dt_weight must be (K, C, R) with {groups} and C = {channels}, got {tuple(dt_weight.shape)}")
    if A.dim() != 2 or A.shape[0] != K * channels or A.shape[1] == 0:
        raise ValueError(f"A must be (K*C, N) with K*C = {K * channels} and N >= 1, got {tuple(A.shape)}")
    rank, state = dt_weight.shape[2], A.shape[1]
    expected = {
        "x_proj_weight": (x_proj_weight, (K, rank + 2 * state, channels)),
        "dt_bias": (dt_bias, (K, channels)),
        "D": (D, (K * channels,)),
    }
    for name, (tensor, shape) in expected.items():
        checks.shape(name, tensor, shape, x=x, dt_weight=dt_weight, A=A)
    checks.floating(x=x, x_proj_weight=x_proj_weight, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D)
    checks.same_device(x=x, x_proj_weight=x_proj_weight, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D)


def check_readout(h: Tensor, C: Tensor, x: Tensor, D: Tensor | None) -> None:
    """The arguments of `ss2d_readout`."""
    if h.dim() != 6 or C.shape != h.shape[:2] + h.shape[3:]:
        raise ValueError(
            f"h must be (B, K, C, N, H, W) and C (B, K, N, H, W), got {tuple(h.shape)} and {tuple(C.shape)}"
        )
    batch, K, channels, _, height, width = h.shape
    checks.shape("x", x, (batch, channels, height, width), h=h)
    checks.shape("D", D, (K * channels,), h=h)
    checks.floating(h=h, C=C, x=x, D=D)
    checks.same_device(h=h, C=C, x=x, D=D)
