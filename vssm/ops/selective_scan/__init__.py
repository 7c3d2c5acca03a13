"""The selective scan (S6) over sequences, and the states themselves.

    dt_t = softplus(dt_t + dt_bias)                       (bias and softplus are optional)
    h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t             h_{-1} = initial_state, or 0
    y_t  = <C_t, h_t> + D u_t                             (D is optional)

VMamba (arXiv 2401.10166), section 3, equations 3 and 4; `initial_state` is their h_a. With discretization="zoh", B_t is
weighted by (exp(dt_t A) - 1) / A in place of dt_t, see `vssm.ops.discretization`.
"""

from functools import partial

from torch import Tensor

from vssm.ops import checks
from vssm.ops.discretization import evaluate_zoh, is_zoh
from vssm.ops.operator import Operator
from vssm.ops.selective_scan import core, portable, reference, two_level, zero_order_hold

__all__ = ["selective_scan", "selective_scan_states"]


def scan_macs(batch: int, length: int, channels: int, state: int, readout: bool, skip: bool) -> int:
    """The papers' count: 9 per state with the readout by C, 7 for the states alone, 1 per channel for the skip."""
    return batch * length * channels * ((9 if readout else 7) * state + skip)


_scan = Operator(
    "selective_scan(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, "
    "Tensor? initial_state, bool dt_softplus) -> (Tensor, Tensor)",
    shape=lambda u, dt, A, *_: [u.shape, (*u.shape[:2], A.shape[1])],
    reference=reference.scan,
    portable=portable.scan,
    plain=partial(portable.scan, unrolled=True),
    torch_path=two_level,
    core=core,
    triton="vssm.ops.selective_scan.triton",
    result="at least float32",
    macs=lambda u, dt, A, B, C, D, *_: {"scan": scan_macs(u[0], u[2], *A, readout=True, skip=D is not None)},
)
_states = Operator(
    "selective_scan_states(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor? dt_bias, Tensor? initial_state, "
    "bool dt_softplus) -> Tensor",
    shape=lambda u, dt, A, *_: (*u.shape[:2], A.shape[1], u.shape[2]),
    reference=reference.states,
    portable=portable.states,
    plain=partial(portable.states, unrolled=True),
    torch_path=two_level,
    core=core,
    triton="vssm.ops.selective_scan.triton",
    prefix="states_",
    result="at least float32",
    macs=lambda u, dt, A, *_: {"scan": scan_macs(u[0], u[2], *A, readout=False, skip=False)},
)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    discretization: str = "euler",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run K groups of C channels through the scan; the channels of a group share B and C.

    Args:
        u: input (B, K*C, L), any strides, L >= 1; float32, float64, bfloat16 or float16.
        dt: step sizes (B, K*C, L), dtype of u; before bias and softplus.
        A: (K*C, N), negative for a decaying state.
        B: (B, K, N, L), or (B, N, L) for one group; dtype of u.
        C: like B.
        D: skip weight (K*C,), or None.
        dt_bias: (K*C,), or None.
        dt_softplus: apply softplus to dt + dt_bias (the identity above 20).
        initial_state: state before the first step (B, K*C, N), or None for zero.
        return_last_state: also return h_{L-1} (B, K*C, N).
        discretization: how B enters, see `vssm.ops.discretization`: "euler" or "zoh". The latter goes through the same
            kernels one state at a time, with N times the memory for u and dt.

    Returns:
        y (B, K*C, L) in at least float32 (float64 stays float64), with the last state if asked for.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; the message names the argument.

    Everything is computed in at least float32. The backward recomputes the states; nothing of size L*N is stored.
    Cost: 9 B L K C N + B L K C multiply-adds.
    """
    B, C = _with_groups(B), _with_groups(C)
    _check(u, dt, A, B, C, D, dt_bias, initial_state)
    args = (u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus)
    zoh = is_zoh(discretization)
    y, last = evaluate_zoh(_scan, zero_order_hold.scan, args) if zoh else _scan(*args)
    return (y, last) if return_last_state else y


def selective_scan_states(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    discretization: str = "euler",
) -> Tensor:
    """The states h (B, K*C, N, L) of `selective_scan`, before C is applied. Arguments as there."""
    B = _with_groups(B)
    _check(u, dt, A, B, None, None, dt_bias, initial_state)
    args = (u, dt, A, B, dt_bias, initial_state, dt_softplus)
    if not is_zoh(discretization):
        return _states(*args)
    return evaluate_zoh(_states, zero_order_hold.states, args)


def _with_groups(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 3 else x


def _check(u, dt, A, B, C, D, dt_bias, initial_state) -> None:
    if u.dim() != 3:
        raise ValueError(f"u must be (B, K*C, L), got {tuple(u.shape)}")
    batch, channels, length = u.shape
    if batch == 0 or channels == 0 or length == 0:
        raise ValueError(f"u must not be empty, got {tuple(u.shape)}; the scan needs B, K*C and L of at least 1")
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise ValueError(f"A must be (K*C, N) with K*C = {channels} as in u and N >= 1, got {tuple(A.shape)}")
    if B.dim() != 4:
        raise ValueError(f"B must be (B, K, N, L) or (B, N, L), got {B.dim()} dimensions: {tuple(B.shape)}")
    groups, state = B.shape[1], A.shape[1]
    if channels % groups:
        raise ValueError(f"u has {channels} channels, which the K = {groups} groups of B do not divide")
    expected = {
        "dt": (dt, (batch, channels, length)),
        "B": (B, (batch, groups, state, length)),
        "C": (C, (batch, groups, state, length)),
        "D": (D, (channels,)),
        "dt_bias": (dt_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, state)),
    }
    for name, (tensor, shape) in expected.items():
        checks.shape(name, tensor, shape, u=u, A=A)
    checks.same_device(u=u, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, initial_state=initial_state)
    checks.same_dtype(u=u, dt=dt, B=B, C=C)
    checks.floating(A=A, D=D, dt_bias=dt_bias, initial_state=initial_state)
