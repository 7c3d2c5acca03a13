"""The selective scan on Triton: geometry, buffers and launches. The kernels are in triton_forward.py and
triton_backward.py; ss2d/triton.py launches the same ones on maps.

Everything is computed in float32, which is the dtype of outputs and gradients. No autograd.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from vssm.ops import gpu
from vssm.ops.selective_scan.triton_backward import gradients
from vssm.ops.selective_scan.triton_forward import sequential_scan, state_passing, tile_scan, tile_states
from vssm.ops.tensors import dense

# Programs that share the tiles of a backward: enough to fill a large GPU, few enough for the parts they leave.
# A constant, not the GPU's size, so that sums are cut alike everywhere.
SHARES = 1024


@dataclass(frozen=True)
class Walk:
    """A walk over a map, row by row or column by column, and the routes that take it, each there or back."""

    columns: bool
    height: int
    width: int
    routes: tuple[int, ...]
    back: tuple[bool, ...]

    def arguments(self, tiles: int, P: int) -> dict[str, Any]:
        """As the kernels take it when the map is cut into `tiles` of P pixels."""
        if self.columns:
            lines = {"pieces": -(-self.height // P), "line": self.height, "line_step": 1, "pixel_step": self.width}
        else:
            lines = {"pieces": tiles, "line": self.height * self.width, "line_step": 0, "pixel_step": 1}
        return lines | {"first": self.routes[0]}

    def together(self) -> dict[str, Any]:
        """Which routes share a tile."""
        return {"ROUTES": tuple(k - self.routes[0] for k in self.routes), "BACK": self.back}

    def alone(self) -> list["Walk"]:
        """One walk for each route."""
        pairs = zip(self.routes, self.back, strict=True)
        return [Walk(self.columns, self.height, self.width, (k,), (back,)) for k, back in pairs]


@dataclass(frozen=True)
class Geometry:
    """Sizes and strides of one call, as the kernels take them (triton_steps.py)."""

    batch: int
    K: int
    channels: int
    length: int
    rank: int
    state: int
    softplus: bool
    maps: tuple[int, int, int]
    rows: tuple[int, int, int]
    states: tuple[int, int, int, int]
    # From pixel to pixel in maps, rows and states.
    steps: tuple[int, int, int]
    walks: tuple[Walk, ...]
    # Routes with maps of their own are launched side by side: the grid's third dimension.
    separate: bool
    # Positions and channels of a tile.
    T: int
    BC: int

    @property
    def P(self) -> int:
        """Pixels of a tile: a column is cut evenly, and the rows into as many tiles."""
        heights = [walk.height for walk in self.walks if walk.columns]
        return -(-heights[0] // -(-heights[0] // self.T)) if heights else min(self.T, self.length)

    @property
    def tiles(self) -> int:
        """Tiles of every route; the last ones of rows may be empty."""
        for walk in self.walks:
            if walk.columns:
                return walk.width * -(-walk.height // self.P)
        return -(-self.length // self.P)

    @property
    def channel_tiles(self) -> int:
        return -(-self.channels // self.BC)

    @property
    def planes(self) -> int:
        """Size of the grid's third dimension."""
        return self.K if self.separate else 1

    def arguments(self) -> dict[str, Any]:
        """Arguments common to the kernels that work on tiles of maps."""
        sizes = {"K": self.K, "tiles": self.tiles, "CHANNELS": self.channels, "R": self.rank, "N": self.state}
        strides = {"maps": self.maps, "rows": self.rows, "states": self.states, "STEPS": self.steps}
        tile = {"P": self.P, "WHOLE": self.tiles * self.P == self.length, "T": self.T, "BC": self.BC, "num_warps": 1}
        return sizes | strides | tile | {"SOFTPLUS": self.softplus}


@dataclass(frozen=True)
class Inputs:
    """The tensors of one call; weights float32 and contiguous, the others as `Geometry` says.

    Either dt, B and C, or the rows (low-rank dt, B, C) of all pixels as `low`, and `weight`.
    """

    u: Tensor
    A: Tensor
    dt: Tensor | None = None
    low: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    B: Tensor | None = None
    C: Tensor | None = None
    D: Tensor | None = None
    initial: Tensor | None = None

    def scanned(self) -> dict[str, Any]:
        """What every kernel on tiles of maps reads."""
        names = ("u", "dt", "low", "B", "C", "weight", "bias", "A")
        return {name: getattr(self, name) for name in names}


def run_state_passing(
    g: Geometry, x: Inputs, gy: Tensor | None = None, gstates: Tensor | None = None, glast: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(B, K, tiles+1, N, C): the state entering each tile of each route and, at last, the one that leaves the route.

    With gy or gstates also the gradient that enters each tile from later ones, tiles counted from the route's end.
    """
    backward = gy is not None or gstates is not None
    ends = x.u.new_empty((g.batch, g.K, g.tiles, g.state, g.channels), dtype=torch.float32)
    starts = torch.empty_like(ends) if backward else None
    lasts = x.u.new_empty((g.batch, g.K, g.tiles, g.channels), dtype=torch.float32)
    grid = (g.batch * g.tiles, g.channel_tiles, g.planes)
    for walk in g.walks:
        gpu.launch(
            tile_states,
            grid,
            x.u.device,
            **x.scanned(),
            gy=gy,
            gstates=gstates,
            ends=ends,
            starts=starts,
            lasts=lasts,
            **walk.together(),
            **walk.arguments(g.tiles, g.P),
            **g.arguments(),
        )
    entering = _run_state_passing(g, ends, lasts, x, x.initial, backward=False)
    return entering, None if starts is None else _run_state_passing(g, starts, lasts, x, glast, backward=True)


def _run_state_passing(
    g: Geometry, passed: Tensor, lasts: Tensor, x: Inputs, initial: Tensor | None, backward: bool
) -> Tensor:
    entering = passed.new_empty((g.batch, g.K, g.tiles + 1, g.state, g.channels))
    grid = (g.batch * g.K, -(-g.channels // 32), g.state)
    per_warp = min(16, triton.next_power_of_2(g.tiles))
    warps = min(16, triton.next_power_of_2(-(-g.tiles // per_warp)))
    gpu.launch(
        state_passing,
        grid,
        x.u.device,
        passed=passed,
        lasts=lasts,
        A=x.A,
        initial=initial,
        entering=entering,
        K=g.K,
        channels=g.channels,
        tiles=g.tiles,
        N=g.state,
        BACKWARD=backward,
        J=per_warp,
        S=warps,
        BC=32,
        num_warps=warps,
    )
    return entering


def run_forward(
    g: Geometry, x: Inputs, y: Tensor | None = None, states: Tensor | None = None, last: Tensor | None = None
) -> None:
    """Fill y, the sum over routes, or every route's states; and the states (B, K, C, N) that leave the routes."""
    if g.tiles == 1 and x.initial is None and last is None:
        _run_tile_scan(g, x, None, y, states)
    elif gpu.fills_gpu(g.batch * g.channel_tiles * g.planes, x.u.device):
        _run_sequential_scan(g, x, y, states, last)
    else:
        entering, _ = run_state_passing(g, x)
        _run_tile_scan(g, x, entering, y, states)
        if last is not None:
            last.copy_(entering[:, :, -1].transpose(2, 3))


def _run_tile_scan(g: Geometry, x: Inputs, entering: Tensor | None, y: Tensor | None, states: Tensor | None) -> None:
    grid = (g.batch * g.tiles, g.channel_tiles, g.planes)
    for index, walk in enumerate(g.walks):
        gpu.launch(
            tile_scan,
            grid,
            x.u.device,
            **x.scanned(),
            D=x.D,
            entering=entering,
            y=y,
            out=states,
            ADD=y is not None and index > 0,
            **walk.together(),
            **walk.arguments(g.tiles, g.P),
            **g.arguments(),
        )


def _run_sequential_scan(g: Geometry, x: Inputs, y: Tensor | None, states: Tensor | None, last: Tensor | None) -> None:
    for index, walk in enumerate(g.walks):
        gpu.launch(
            sequential_scan,
            (g.batch, g.channel_tiles, g.planes),
            x.u.device,
            **x.scanned(),
            D=x.D,
            initial=x.initial,
            last=last,
            y=y,
            out=states,
            NP=triton.next_power_of_2(g.state),
            ADD=y is not None and index > 0,
            **walk.together(),
            **walk.arguments(g.tiles, g.P),
            **g.arguments(),
        )


def run_gradients(
    g: Geometry,
    x: Inputs,
    entering: Tensor | None,
    arriving: Tensor | None,
    drows: Tensor,
    gradient_rows: tuple[int, ...],
    gy: Tensor | None = None,
    gstates: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients by u (in its dtype), dt and the weights that are present; those of the rows are written into `drows`.

    drows (tiles of channels, ...): the gradients of low-rank dt, B and C, their strides `gradient_rows` as `rows`.
    """
    shares = max(1, min(g.batch * g.tiles, SHARES // (g.channel_tiles * g.planes)))

    def parts(weight: Tensor | None, *shape: int) -> Tensor | None:
        if weight is None:
            return None
        return x.u.new_empty((shares, g.K, g.channels, *shape), dtype=torch.float32)

    weights = {
        "dA": parts(x.A, g.state),
        "dweight": parts(x.weight, g.rank),
        "dbias": parts(x.bias),
        "dD": parts(x.D),
    }
    ddt = None if x.dt is None else torch.empty_like(x.dt)
    half = x.u.element_size() < 4
    walks = [alone for walk in g.walks for alone in walk.alone()]
    so_far, du = None, x.u
    for index, walk in enumerate(walks):
        if index + 1 == len(walks):  # between routes the sum is float32; the last one rounds it
            du = torch.empty_like(x.u)
        else:
            du = torch.empty_like(x.u, dtype=torch.float32) if so_far is None else so_far
        gpu.launch(
            gradients,
            (shares, g.channel_tiles, g.planes),
            x.u.device,
            **x.scanned(),
            **weights,
            drows=drows,
            gradient_rows=gradient_rows,
            D=x.D,
            gy=gy,
            gstates=gstates,
            entering=entering,
            arriving=arriving,
            du_so_far=so_far,
            du=du,
            ddt=ddt,
            samples=g.batch,
            part=drows.stride(0),
            RP=max(16, triton.next_power_of_2(g.rank)),
            NP=triton.next_power_of_2(g.state),
            WP=max(16, triton.next_power_of_2(g.rank + 2 * g.state if g.state <= 16 else g.rank)),
            PRECISION=gpu.dot_precision(x.u.device, half),
            BACK=walk.back[0],
            num_stages=1,
            **walk.arguments(g.tiles, g.P),
            **g.arguments(),
        )
        so_far = du
    grads = {name: part.sum(0) for name, part in weights.items() if part is not None}
    return {"du": du, **grads} | ({} if ddt is None else {"ddt": ddt})


# ---- the operators: u, dt (B, K*C, L); A (K*C, N); B, C (B, K, N, L) ----


class _Sequences:
    """One call of the operator as the kernels take it: every group is a route of its own, along one row."""

    def __init__(self, u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus, backward=False):
        gpu.check_scan_fits(A.shape[1], 0)
        batch, K, N, length = B.shape
        channels = u.shape[1] // K
        T, BC = gpu.scan_tiles(channels, 0, backward)[0]
        self.geometry = Geometry(
            batch=batch,
            K=K,
            channels=channels,
            length=length,
            rank=0,
            state=N,
            softplus=dt_softplus,
            maps=(K * channels * length, channels * length, length),
            rows=(K * N * length, N * length, length),
            states=(K * channels * N * length, channels * N * length, length, N * length),
            steps=(1, 1, 1),
            walks=(Walk(False, 1, length, (0,), (False,)),),
            separate=True,
            T=T,
            BC=BC,
        )
        self.inputs = Inputs(
            u=u.contiguous(),
            dt=dt.contiguous(),
            B=B.contiguous(),
            C=None if C is None else C.contiguous(),
            A=dense(A, torch.float32),
            D=dense(D, torch.float32),
            bias=dense(dt_bias, torch.float32),
            initial=dense(initial_state, torch.float32),
        )

    def backward(self, glast=None, **incoming: Tensor) -> dict[str, Tensor]:
        """Gradients by name, in the operator's layout."""
        g, x = self.geometry, self.inputs
        incoming = {name: t.contiguous() for name, t in incoming.items()}
        entering, arriving = run_state_passing(g, x, **incoming, glast=dense(glast, torch.float32))
        assert arriving is not None
        width = g.state if x.C is None else 2 * g.state
        drows = x.u.new_empty((g.channel_tiles, g.batch, g.K, width, g.length), dtype=torch.float32)
        grads = run_gradients(g, x, entering, arriving, drows, tuple(drows.stride()[1:4]), **incoming)
        dB, dC = drows.sum(0).split(g.state, 2) if x.C is not None else (drows.sum(0), None)
        # What leaves the route's beginning is the gradient of the state before it.
        return grads | {"dB": dB, "dC": dC, "dinitial": arriving[:, :, -1].transpose(2, 3)}


def forward(u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus) -> tuple[Tensor, Tensor]:
    """(y (B, K*C, L), last state (B, K*C, N)), float32."""
    call = _Sequences(u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus)
    g, x = call.geometry, call.inputs
    y = torch.empty_like(x.u, dtype=torch.float32)
    last = y.new_empty((g.batch, g.K, g.channels, g.state))
    run_forward(g, x, y, last=last)
    return y, last.flatten(1, 2)


def states_forward(u, dt, A, B, dt_bias, initial_state, dt_softplus) -> Tensor:
    """h (B, K*C, N, L), float32."""
    call = _Sequences(u, dt, A, B, None, None, dt_bias, initial_state, dt_softplus)
    h = u.new_empty((*u.shape[:2], A.shape[1], u.shape[2]), dtype=torch.float32)
    run_forward(call.geometry, call.inputs, states=h)
    return h


def backward(gy, glast, u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus) -> tuple[Tensor | None, ...]:
    """(du, ddt, dA, dB, dC, dD, ddt_bias, dinitial_state); None for an absent input."""
    g = _Sequences(u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus, True).backward(glast, gy=gy)
    return g["du"], g["ddt"], g["dA"], g["dB"], g["dC"], g.get("dD"), g.get("dbias"), g["dinitial"]


def states_backward(gh, u, dt, A, B, dt_bias, initial_state, dt_softplus) -> tuple[Tensor | None, ...]:
    """(du, ddt, dA, dB, ddt_bias, dinitial_state) given gh (B, K*C, N, L)."""
    g = _Sequences(u, dt, A, B, None, None, dt_bias, initial_state, dt_softplus, True).backward(gstates=gh)
    return g["du"], g["ddt"], g["dA"], g["dB"], g.get("dbias"), g["dinitial"]
