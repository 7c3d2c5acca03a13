"""The selective scan on the compiled core (csrc/kernels/scan_*.cpp): layouts and one call, no autograd.

The kernels want channels last: u, dt, y (B, K, L, C), B and C side by side in one (B, L, K, 2N). Shapes here are those
of the public operator. Everything is computed in float32, or in float64 if any tensor is; outputs have that dtype and
every gradient the dtype of its input.
"""

import ctypes

import torch
from torch import Tensor

from vssm.ops import native

_SIZES = ("is_double", "batch", "routes", "channels", "length", "rank", "state", "softplus", "separate", "chunk")
_INPUTS = ("u", "dt", "proj", "dt_weight", "dt_bias", "A", "D", "initial", "order")
_OUTPUTS = ("y", "last", "states", "gy", "glast", "gstates")
_GRADIENTS = ("du", "ddt", "dproj", "ddt_weight", "ddt_bias", "dA", "dD", "dinitial")

# Steps between the states that a backward keeps, a multiple of 8; 0 leaves it to the kernel. Tests set it.
CHUNK = 0


class ScanArgs(ctypes.Structure):
    """struct ScanArgs of csrc/scan.h."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [
        (name, ctypes.c_void_p) for name in (*_INPUTS, *_OUTPUTS, *_GRADIENTS)
    ]


def run(kernel: str, dtype: torch.dtype, sizes: dict[str, int], tensors: dict[str, Tensor | None]) -> None:
    """Call a scan kernel on contiguous tensors of `dtype` (None stands for "absent" or "not wanted")."""
    arguments = ScanArgs(is_double=dtype == torch.float64, chunk=CHUNK, **sizes)
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(arguments, name, tensor.data_ptr())
    native.call(kernel, arguments)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def dense(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """x contiguous in the compute dtype; itself when it already is."""
    return None if x is None else x.to(dtype).contiguous()


class _Layout:
    """The inputs of one call in the kernel's layout."""

    def __init__(self, u, dt, A, B, C, D, dt_bias, dt_softplus, initial_state):
        self.dtype = dtype = compute_dtype(u, dt, A, B, C, D, dt_bias, initial_state)
        batch, K, N, length = B.shape
        channels = u.shape[1] // K
        self.sizes = {
            "batch": batch,
            "routes": K,
            "channels": channels,
            "length": length,
            "rank": 0,
            "state": N,
            "softplus": int(dt_softplus),
            "separate": 1,
        }
        self.inputs = {
            "u": self.sequences(u),
            "dt": self.sequences(dt),
            "proj": self.projection(B, C),
            "dt_bias": dense(dt_bias, dtype),
            "A": dense(A, dtype),
            "D": dense(D, dtype),
            "initial": dense(initial_state, dtype),
        }

    def sequences(self, x: Tensor) -> Tensor:
        """(B, K*C, L) -> (B, K, L, C)."""
        return x.unflatten(1, (self.sizes["routes"], -1)).transpose(2, 3).to(self.dtype).contiguous()

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
        return s["batch"], s["routes"], s["state"], s["length"], s["channels"]

    def gradients(self, **incoming: Tensor | None) -> dict[str, Tensor | None]:
        """Run the backward; gradients in the kernel's layout, None where the input is None."""
        grads = {"d" + name: None if x is None else torch.empty_like(x) for name, x in self.inputs.items()}
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
    g = layout.gradients(gy=layout.sequences(gy), glast=dense(glast, layout.dtype))
    N = A.shape[1]
    dB, dC = g["dproj"][..., :N].permute(0, 2, 3, 1), g["dproj"][..., N:].permute(0, 2, 3, 1)
    grads = (_unsequence(g["du"]), _unsequence(g["ddt"]), g["dA"], dB, dC, g["dD"], g["ddt_bias"], g["dinitial"])
    return _like(grads, (u, dt, A, B, C, D, dt_bias, initial_state))


def states_backward(gh, u, dt, A, B, dt_bias, dt_softplus, initial_state) -> tuple[Tensor | None, ...]:
    """(du, ddt, dA, dB, ddt_bias, dinitial_state) given gh (B, K*C, N, L)."""
    layout = _Layout(u, dt, A, B, None, None, dt_bias, dt_softplus, initial_state)
    gstates = gh.unflatten(1, (B.shape[1], -1)).permute(0, 1, 3, 4, 2).to(layout.dtype).contiguous()
    g = layout.gradients(gstates=gstates)
    dB = g["dproj"][..., : A.shape[1]].permute(0, 2, 3, 1)
    grads = (_unsequence(g["du"]), _unsequence(g["ddt"]), g["dA"], dB, g["ddt_bias"], g["dinitial"])
    return _like(grads, (u, dt, A, B, dt_bias, initial_state))


def _like(grads: tuple, inputs: tuple) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else g.reshape(x.shape).to(x.dtype) for g, x in zip(grads, inputs, strict=True))
