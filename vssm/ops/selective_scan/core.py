"""The selective scan on the compiled core (csrc/kernels/scan_*.cpp): layouts and one call, no autograd.

The kernels want channels last: u, dt, y (B, K, L, C), B and C side by side in one (B, L, K, 2N). Shapes here are those
of the public operator. Everything is computed in float32, or in float64 if any tensor is; outputs and gradients
have that dtype.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.tensors import core_dtype, dense

# Steps between the states that a backward keeps, a multiple of 8; 0 leaves it to the kernel. Tests set it.
CHUNK = 0

# struct ScanArgs of csrc/scan.h: ten integers, beginning with is_double and ending with chunk, then these tensors.
_TENSORS = ("u", "dt", "proj", "dt_weight", "dt_bias", "A", "D", "initial", "order")
_TENSORS += ("y", "last", "states", "gy", "glast", "gstates")
_TENSORS += ("du", "ddt", "dproj", "ddt_weight", "ddt_bias", "dA", "dD", "dinitial")


class Sizes(NamedTuple):
    """The sizes and flags of struct ScanArgs."""

    batch: int
    routes: int
    channels: int
    length: int
    rank: int
    state: int
    softplus: bool
    separate: bool


def run(kernel: str, dtype: torch.dtype, sizes: Sizes, tensors: dict[str, Tensor]) -> None:
    """Call a scan kernel on contiguous tensors of `dtype`; those left out are absent or not wanted."""
    native.call(kernel, dtype is torch.float64, *sizes, CHUNK, *[tensors.get(name) for name in _TENSORS])


def prepare(dtype: torch.dtype, **tensors: Tensor | None) -> dict[str, Tensor]:
    """The tensors that are present, contiguous in the compute dtype; themselves when they already are."""
    return {name: dense(t, dtype) for name, t in tensors.items() if t is not None}


class _Layout:
    """The inputs of one call in the kernel's layout."""

    def __init__(self, u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus):
        self.dtype = dtype = core_dtype(u, dt, A, B, C, D, dt_bias, initial_state)
        batch, K, N, length = B.shape
        self.sizes = Sizes(batch, K, u.shape[1] // K, length, 0, N, dt_softplus, True)
        self.inputs = {
            "u": self.sequences(u),
            "dt": self.sequences(dt),
            "proj": self.projection(B, C),
            **prepare(dtype, dt_bias=dt_bias, A=A, D=D, initial=initial_state),
        }

    def sequences(self, x: Tensor) -> Tensor:
        """(B, K*C, L) -> (B, K, L, C)."""
        return x.unflatten(1, (self.sizes.routes, -1)).transpose(2, 3).to(self.dtype).contiguous()

    def projection(self, B: Tensor, C: Tensor | None) -> Tensor:
        """B and C (B, K, N, L) -> (B, L, K, 2N). Without C its half is not read."""
        batch, K, N, length = B.shape
        proj = B.new_empty(batch, length, K, 2 * N, dtype=self.dtype)
        proj[..., :N] = B.permute(0, 3, 1, 2)
        if C is not None:
            proj[..., N:] = C.permute(0, 3, 1, 2)
        return proj

    def empty(self, *shape: int) -> Tensor:
        return self.inputs["u"].new_empty(shape)

    def states_shape(self) -> tuple[int, ...]:
        s = self.sizes
        return s.batch, s.routes, s.state, s.length, s.channels

    def gradients(self, **incoming: Tensor) -> dict[str, Tensor]:
        """Run the backward; one gradient "d" + name per input, in the kernel's layout."""
        grads = {"d" + name: torch.empty_like(x) for name, x in self.inputs.items()}
        run("scan_backward", self.dtype, self.sizes, {**self.inputs, **incoming, **grads})
        return grads


def _unsequence(x: Tensor) -> Tensor:
    """(B, K, L, C) -> (B, K*C, L)."""
    return x.transpose(2, 3).flatten(1, 2)


def forward(u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus) -> tuple[Tensor, Tensor]:
    """(y (B, K*C, L), last state (B, K*C, N))."""
    layout = _Layout(u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus)
    y = torch.empty_like(layout.inputs["u"])
    last = layout.empty(*u.shape[:2], A.shape[1])
    run("scan_forward", layout.dtype, layout.sizes, {**layout.inputs, "y": y, "last": last})
    return _unsequence(y), last


def states_forward(u, dt, A, B, dt_bias, initial_state, dt_softplus) -> Tensor:
    """h (B, K*C, N, L)."""
    layout = _Layout(u, dt, A, B, None, None, dt_bias, initial_state, dt_softplus)
    h = layout.empty(*layout.states_shape())
    run("scan_forward", layout.dtype, layout.sizes, {**layout.inputs, "states": h})
    return h.permute(0, 1, 4, 2, 3).flatten(1, 2)


def backward(gy, glast, u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus) -> tuple[Tensor | None, ...]:
    """(du, ddt, dA, dB, dC, dD, ddt_bias, dinitial_state); None for an absent input."""
    layout = _Layout(u, dt, A, B, C, D, dt_bias, initial_state, dt_softplus)
    g = layout.gradients(gy=layout.sequences(gy), **prepare(layout.dtype, glast=glast))
    N = A.shape[1]
    dB, dC = (part.permute(0, 2, 3, 1).contiguous() for part in (g["dproj"][..., :N], g["dproj"][..., N:]))
    rest = g.get("dD"), g.get("ddt_bias"), g.get("dinitial")
    return _unsequence(g["du"]), _unsequence(g["ddt"]), g["dA"], dB, dC, *rest


def states_backward(gh, u, dt, A, B, dt_bias, initial_state, dt_softplus) -> tuple[Tensor | None, ...]:
    """(du, ddt, dA, dB, ddt_bias, dinitial_state) given gh (B, K*C, N, L)."""
    layout = _Layout(u, dt, A, B, None, None, dt_bias, initial_state, dt_softplus)
    gstates = gh.unflatten(1, (B.shape[1], -1)).permute(0, 1, 3, 4, 2).to(layout.dtype).contiguous()
    g = layout.gradients(gstates=gstates)
    dB = g["dproj"][..., : A.shape[1]].permute(0, 2, 3, 1)
    return _unsequence(g["du"]), _unsequence(g["ddt"]), g["dA"], dB, g.get("ddt_bias"), g.get("dinitial")
