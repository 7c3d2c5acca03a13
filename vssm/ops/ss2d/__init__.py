"""SS2D after its depthwise convolution: project, scan a map along several routes, merge. Whole, or split at the states.

    [dt_k | B_k | C_k] = x_proj_weight_k x                      once, on the raster map
    dt_k = softplus(dt_weight_k dt_k + dt_bias_k)
    h_k  = exp(dt_k A_k) h_k' + dt_k B_k x                      h_k' = state at the pixel visited before on route k
    y    = sum_k  <C_k, h_k> + D_k x

VMamba (arXiv 2401.10166), section 4.2 and figure 2. The fused path never writes the K sequences. Split:
`ss2d_states` gives h on the image grid and `ss2d_readout` applies C, D and the merge; what changes the states between
them (fusion, adaptors) need not know how they came about. Spatial-Mamba is the route list `RASTER` with a fusion there.
"""

from functools import partial

from torch import Tensor

from vssm.ops.discretization import evaluate_zoh, is_zoh
from vssm.ops.linear import linear
from vssm.ops.operator import Operator
from vssm.ops.routes import CROSS, Route, encode
from vssm.ops.selective_scan import scan_macs
from vssm.ops.ss2d import core, portable, reference, two_level, zero_order_hold
from vssm.ops.ss2d.arguments import check, check_readout
from vssm.ops.ss2d.cascade import ss2d_cascade
from vssm.ops.ss2d.readout import READOUT
from vssm.ops.tensors import MAP
from vssm.ops.tensors import STATES as STATES_ORDER

__all__ = ["ss2d", "ss2d_cascade", "ss2d_readout", "ss2d_states"]


def _macs(x, dt_weight, A, readout: bool, skip: bool) -> dict[str, int]:
    """The scan of every route, and the projection of dt."""
    batch, _, height, width = x
    K, C, R = dt_weight
    pixels = height * width
    return {"linear": batch * pixels * K * C * R, "scan": scan_macs(batch, pixels, *A, readout=readout, skip=skip)}


_ss2d = Operator(
    "ss2d(Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor? D, int[] routes) -> Tensor",
    shape=lambda x, *_: x.shape,
    reference=reference.forward,
    portable=portable.forward,
    plain=partial(portable.forward, unrolled=True),
    torch_path=two_level,
    core=core,
    triton="vssm.ops.ss2d.triton",
    result="at least float32",
    order=MAP,
    gradient_orders={"x": MAP},
    macs=lambda x, proj, dt_weight, dt_bias, A, D, *_: _macs(x, dt_weight, A, readout=True, skip=D is not None),
)
STATES = Operator(
    "ss2d_states(Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, int[] routes) -> Tensor",
    shape=lambda x, proj, dt_weight, dt_bias, A, _: (
        x.shape[0],
        dt_weight.shape[0],
        x.shape[1],
        A.shape[1],
        *x.shape[2:],
    ),
    reference=reference.states,
    portable=portable.states,
    plain=partial(portable.states, unrolled=True),
    torch_path=two_level,
    core=core,
    triton="vssm.ops.ss2d.triton",
    prefix="states_",
    result="at least float32",
    order=STATES_ORDER,
    gradient_orders={"x": MAP},
    macs=lambda x, proj, dt_weight, dt_bias, A, _: _macs(x, dt_weight, A, readout=False, skip=False),
)


def ss2d(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None = None,
    routes: tuple[Route, ...] = CROSS,
    discretization: str = "euler",
) -> Tensor:
    """Scan a map along K routes and merge.

    Args:
        x: map (B, C, H, W), any strides (channels_last is the fast memory format), any float dtype.
        x_proj_weight: (K, R+2N, C); the rows of a route are [dt (R) | B (N) | C (N)].
        dt_weight: (K, C, R).
        dt_bias: (K, C), added before softplus.
        A: (K*C, N), negative; row k*C + c is channel c of route k.
        D: skip weight (K*C,), or None.
        routes: K routes; CROSS, UNIDIRECTIONAL, BIDIRECTIONAL, RASTER or your own.
        discretization: how B enters, see `vssm.ops.discretization`: "euler" (dt B), or "zoh", which makes one call of
            the same kernels for each route and state.

    Returns:
        y (B, C, H, W) in at least float32, in channels_last memory.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unknown route; the message names the argument.

    The projection runs in x's dtype (half under autocast), everything after it in at least float32. The backward
    recomputes the states. Multiply-adds: B H W K C (2 (R+N) + 9N + 1), of which C K (R+2N) are the projection.
    """
    check(x, x_proj_weight, dt_weight, dt_bias, A, D, routes)
    args = (x, project(x, x_proj_weight), dt_weight, dt_bias, A, D, encode(routes))
    if not is_zoh(discretization):
        return _ss2d(*args)
    return evaluate_zoh(_ss2d, zero_order_hold.forward, args)


def ss2d_states(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    routes: tuple[Route, ...] = CROSS,
    discretization: str = "euler",
) -> tuple[Tensor, Tensor]:
    """The first half of `ss2d`: each route's states on the image grid, and the readout weights C.

    Arguments as `ss2d`. Returns h (B, K, C, N, H, W) in at least float32, whose memory is (B, K, N, H, W, C), and
    C (B, K, N, H, W) in the dtype of the projection.
    """
    check(x, x_proj_weight, dt_weight, dt_bias, A, None, routes)
    proj = project(x, x_proj_weight)
    _, _, C = reference.split_projection(proj, dt_weight.shape[2], A.shape[1])
    args = (x, proj, dt_weight, dt_bias, A, encode(routes))
    if not is_zoh(discretization):
        return STATES(*args), C
    return evaluate_zoh(STATES, zero_order_hold.states, args), C


def ss2d_readout(h: Tensor, C: Tensor, x: Tensor, D: Tensor | None = None) -> Tensor:
    """The second half of `ss2d`: y = sum_k <C_k, h_k> + D_k x (B, C, H, W), in the dtype of h.

    h (B, K, C, N, H, W) and C (B, K, N, H, W) as `ss2d_states` returns them, x (B, C, H, W), D (K*C,) or None.
    ValueError for shapes, dtypes or devices that do not fit; the message names the argument.
    """
    check_readout(h, C, x, D)
    skip = None if D is None else D.to(h.dtype).view(h.shape[1], h.shape[2]).sum(0)
    return READOUT(h, C, None if D is None else x, skip)


def project(x: Tensor, x_proj_weight: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, K*(R+2N)): the projections of all routes in one matrix product on the raster map."""
    return linear(x.permute(0, 2, 3, 1), x_proj_weight.flatten(0, 1).to(x.dtype))
