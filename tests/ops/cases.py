"""Every public operator at a tiny size, float64: what the contract tests of tests/ops/test_contract.py go through."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vssm.ops
from tests.ops.agree import randn
from vssm.ops import BIDIRECTIONAL, CROSS, RASTER

STEPS = 5  # of a sequence: no square, so that blocks of a scan are filled up


@dataclass(frozen=True)
class Case:
    """One operator: `function` of all `tensors`; `samples` names those whose first dim is the batch."""

    function: Callable[..., Any]
    tensors: dict[str, Tensor]
    samples: tuple[str, ...] = ("x",)
    options: dict[str, Any] = field(default_factory=dict)
    torch_orders: int = 3  # derivatives that the torch path has right

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The results for values in the order of `tensors`."""
        y = self.function(**dict(zip(self.tensors, values, strict=True)), **self.options)
        return y if isinstance(y, tuple) else (y,)


def _numbers(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: randn(*shape, dtype=torch.float64, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def _scan(K=2, C=2, N=2, **more: tuple[int, ...]) -> dict[str, Tensor]:
    shapes = {"u": (2, K * C, STEPS), "dt": (2, K * C, STEPS), "A": (K * C, N), "B": (2, K, N, STEPS)}
    found = _numbers(10, **shapes, **more)
    return found | {"A": -found["A"].abs() - 0.1}


def _ss2d(K: int, N: int = 2, C: int = 3, R: int = 2, **more: tuple[int, ...]) -> dict[str, Tensor]:
    shapes = {"x": (2, C, 2, 3), "x_proj_weight": (K, R + 2 * N, C), "dt_weight": (K, C, R), "dt_bias": (K, C)}
    found = _numbers(20, **shapes, A=(K * C, N), **more)
    return found | {"A": -found["A"].abs() - 0.1}


def _fused(function, count: int = 2, **tensors):
    kernels = [tensors.pop(f"kernel{i}") for i in range(count)]
    return function(kernels=kernels, dilations=[1, 2], **tensors)


def _states_and_weights(**tensors):
    return vssm.ops.ss2d_states(**tensors)


def _norm(running=False, linear=False, **tensors):
    function = vssm.ops.batch_norm_linear if linear else vssm.ops.batch_norm
    return function(running_mean=None, running_var=None, act="relu", **tensors)


_KERNELS = {"kernel0": (3, 1, 3, 3), "kernel1": (3, 1, 3, 3), "alphas": (2,)}
_GRID = {"h": (2, 3, 2, 3)} | _KERNELS

CASES: dict[str, Case] = {
    "layer_norm": Case(vssm.ops.layer_norm, _numbers(0, x=(2, 3, 4), weight=(4,), bias=(4,))),
    "layer_norm gated": Case(
        vssm.ops.layer_norm, _numbers(1, x=(2, 3, 4), weight=(4,), bias=(4,), gate=(2, 3, 4)), ("x", "gate")
    ),
    "rms_norm": Case(vssm.ops.rms_norm, _numbers(2, x=(2, 3, 4), weight=(4,))),
    "linear": Case(vssm.ops.linear, _numbers(3, x=(2, 3, 4), weight=(5, 4), bias=(5,)), options={"act": "gelu"}),
    "mlp": Case(
        vssm.ops.mlp,
        _numbers(4, x=(2, 3, 4), weight1=(6, 4), bias1=(6,), weight2=(4, 6), bias2=(4,), residual=(2, 3, 4)),
        ("x", "residual"),
    ),
    "conv2d": Case(
        vssm.ops.conv2d,
        _numbers(5, x=(2, 3, 4, 5), weight=(2, 3, 3, 3), bias=(2,)),
        options={"stride": 2, "padding": 1},
    ),
    "depthwise_conv3x3": Case(
        vssm.ops.depthwise_conv3x3,
        _numbers(6, x=(2, 3, 3, 4), weight=(3, 1, 3, 3), bias=(3,)),
        options={"act": "silu", "residual": True},
    ),
    "causal_conv1d": Case(
        vssm.ops.causal_conv1d,
        _numbers(7, x=(2, 3, 5), weight=(3, 4), bias=(3,)),
        options={"act": "silu", "reverse": True},
    ),
    "selective_scan": Case(
        vssm.ops.selective_scan,
        _scan(C_=(2, 2, 2, STEPS), D=(4,), dt_bias=(4,), initial_state=(2, 4, 2)),
        ("u", "dt", "B", "C", "initial_state"),
        {"dt_softplus": True, "return_last_state": True},
    ),
    "selective_scan zoh": Case(
        vssm.ops.selective_scan,
        _scan(C_=(2, 2, 2, STEPS), D=(4,)),
        ("u", "dt", "B", "C"),
        {"dt_softplus": True, "discretization": "zoh"},
    ),
    "selective_scan_states": Case(
        vssm.ops.selective_scan_states, _scan(dt_bias=(4,)), ("u", "dt", "B"), {"dt_softplus": True}
    ),
    "ss2d": Case(vssm.ops.ss2d, _ss2d(4, D=(12,)), options={"routes": CROSS}),
    "ss2d zoh": Case(vssm.ops.ss2d, _ss2d(1, D=(3,)), options={"routes": RASTER, "discretization": "zoh"}),
    "ss2d_states": Case(_states_and_weights, _ss2d(4), options={"routes": BIDIRECTIONAL}),
    "ss2d_cascade": Case(vssm.ops.ss2d_cascade, _ss2d(4, D=(12,))),
    "ss2d_readout": Case(
        vssm.ops.ss2d_readout,
        _numbers(30, h=(2, 2, 3, 2, 2, 3), C=(2, 2, 2, 2, 3), x=(2, 3, 2, 3), D=(6,)),
        ("h", "C", "x"),
    ),
    "state_fusion": Case(partial(_fused, vssm.ops.state_fusion), _numbers(40, **_GRID), ("h",)),
    "state_fusion_readout": Case(
        partial(_fused, vssm.ops.state_fusion_readout),
        _numbers(50, **_GRID, C=(2, 1, 2, 3), u=(2, 3, 2, 3), D=(3,)),
        ("h", "C", "u"),
    ),
    "state_gather": Case(
        vssm.ops.state_gather,
        _numbers(60, h=(2, 1, 2, 2, 3, 4), offsets=(2, 1, 2, 2, 3, 4), weights=(2, 1, 2, 3, 4)),
        ("h", "offsets", "weights"),
    ),
}
for _name in ("selective_scan", "selective_scan zoh"):
    CASES[_name].tensors["C"] = CASES[_name].tensors.pop("C_")
CASES |= {
    "bottleneck": Case(
        vssm.ops.bottleneck,
        _numbers(
            70, x=(2, 3, 4, 2), weight1=(4, 2), bias1=(4,), weight2=(4, 1, 3, 3), bias2=(4,), weight3=(3, 4), bias3=(3,)
        ),
    ),
    # torch's own batch norm takes the statistics for constants in its third derivative.
    "batch_norm": Case(
        _norm, _numbers(80, x=(2, 3, 4), weight=(4,), bias=(4,), residual=(2, 3, 4)), (), torch_orders=2
    ),
    "batch_norm_linear": Case(
        partial(_norm, linear=True),
        _numbers(90, x=(2, 3, 4), norm_weight=(4,), norm_bias=(4,), weight=(3, 4)),
        (),
        torch_orders=2,
    ),
}


def loss(outputs: tuple[Tensor, ...]) -> Tensor:
    """A number that depends on every output in a curved way."""
    return sum(
        (F.softplus(y) * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)).sum() for y in outputs
    )


class Calls(TorchDispatchMode):
    """Keeps one call of every operator of this package."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "vssm":
            self.seen.setdefault(func, args)
        return func(*args, **(kwargs or {}))
