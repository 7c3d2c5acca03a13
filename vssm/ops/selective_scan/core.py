"""The selective scan on the compiled core (csrc/kernels/scan_*.cpp): layouts and one call, no autograd.

The kernels want channels last: u, dt, y (B, K, L, C), B and C side by side in one (B, L, K, 2N). Shapes here are those
of the public operator. Everything is computed in float32, or in float64 if any tensor is; outputs have that dtype and
every gradient the dtype of its input.
"""

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from vssm.ops import native
from vssm.ops.pointwise import dense

# Steps between the states that a backward keeps, a multiple of 8; 0 leaves it to the kernel. Tests set it.
CHUNK = 0

# struct ScanArgs of csrc/scan.h: ten integers, beginning with is_double and ending with chunk, then these addresses.
_TENSORS = ("u", "dt", "proj", "dt_weight", "dt_bias", "A", "D", "initial", "order")
_TENSORS += ("y", "last", "states", "gy", "glast", "gstates")
_TENSORS += ("du", "ddt", "dproj", "ddt_weight", "ddt_bias", "dA", "dD", "dinitial")
_ARGUMENTS = struct.Struct(f"{10 + len(_TENSORS)}q")


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
    addresses = [tensors[name].data_ptr() if name in tensors else 0 for name in _TENSORS]
    native.call(kernel, _ARGUMENTS.pack(dtype == torch.float64, *sizes, CHUNK, *addresses))


def prepare(dtype: torch.dtype, **tensors: Tensor | None) -> dict[str, Tensor]:
    """The tensors that are present, contiguous in the compute dtype; themselves when they already are."""
    return {name: dense(t, dtype) for name, t in tensors.items() if t is not None}


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


class _Layout:
    """The inputs of one call in the kernel's layout."""

    def __init__(self, u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
        self.dtype = dtype = compute_dtype(u, dt, A, B, C, D, dt_bias, initial_state)
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


def forward(u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state) -> tuple[Tensor, Tensor]:
    """(y (B, K*C, L), last state (B, K*C, N))."""
    layout = _Layout(u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)
    y = torch.empty_like(layout.inputs["u"])
    last = layout.empty(*u.shape[:2], A.shape[1])
    run("scan_forward", layout.dtype, layout.sizes, {**layout.inputs, "y": y, "last": last})
    return _unsequence(y), last


def states_forward(u, dt, A, B, dt_bias, dt_softplus, initial_state) -> Tensor:
    """h (B, K*C, N, L)."""
    layout = _Layout(u, dt, A, B, None, None, dt_bias, dt_softplus, initial_state)
    h = layout.empty(*layout.states_shape())
    run("scan_forward", layout.dtype, layout.sizes, {**layout.inputs, "states": h})
    return h.permute(0, 1, 4, 2, 3).flatten(1, 2)


def backward(gy, glast, u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state) -> tuple[Tensor | None, ...]:
    """(du, ddt, dA, dB, dC, dD, ddt_bias, dinitial_state); None for an absent input."""
    layout = _Layout(u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)
    g = layout.gradients(gy=layout.sequences(gy), **prepare(layout.dtype, glast=glast))
    N = A.shape[1]
    dB, dC = g["dproj"][..., :N].permute(0, 2, 3, 1), g["dproj"][..., N:].permute(0, 2, 3, 1)
    rest = g.get("dD"), g.get("ddt_bias"), g.get("dinitial")
    grads = (_unsequence(g["du"]), _unsequence(g["ddt"]), g["dA"], dB, dC, *rest)
    return _like(grads, (u, dt, A, B, C, D, dt_bias, initial_state))


def states_backward(gh, u, dt, A, B, dt_bias, dt_softplus, initial_state) -> tuple[Tensor | None, ...]:
    """(du, ddt, dA, dB, ddt_bias, dinitial_state) given gh (B, K*C, N, L)."""
    layout = _Layout(u, dt, A, B, None, None, dt_bias, dt_softplus, initial_state)
    gstates = gh.unflatten(1, (B.shape[1], -1)).permute(0, 1, 3, 4, 2).to(layout.dtype).contiguous()
    g = layout.gradients(gstates=gstates)
    dB = g["dproj"][..., : A.shape[1]].permute(0, 2, 3, 1)
    grads = (_unsequence(g["du"]), _unsequence(g["ddt"]), g["dA"], dB, g.get("ddt_bias"), g.get("dinitial"))
    return _like(grads, (u, dt, A, B, dt_bias, initial_state))


def _like(grads: tuple, inputs: tuple) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else g.reshape(x.shape).to(x.dtype) for g, x in zip(grads, inputs, strict=True))
