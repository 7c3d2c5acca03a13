"""The numeric core: pure functions on tensors, each with a reference, a torch path and a compiled CPU path.

`explain()` says which path runs here and why; `use("torch")` demands one.
"""

from typing import TYPE_CHECKING, Any

from vssm.ops.batch_norm import batch_norm, batch_norm_linear
from vssm.ops.bottleneck import bottleneck
from vssm.ops.causal_conv1d import causal_conv1d
from vssm.ops.conv2d import conv2d
from vssm.ops.depthwise import depthwise_conv3x3
from vssm.ops.dispatch import PathUnavailable, SlowPathWarning, explain, use
from vssm.ops.layer_norm import layer_norm
from vssm.ops.linear import linear
from vssm.ops.mlp import mlp
from vssm.ops.rms_norm import rms_norm
from vssm.ops.routes import BIDIRECTIONAL, CROSS, RASTER, UNIDIRECTIONAL, Route
from vssm.ops.selective_scan import selective_scan, selective_scan_states
from vssm.ops.ss2d import ss2d, ss2d_cascade, ss2d_readout, ss2d_states
from vssm.ops.state_fusion import fold_kernels, state_fusion, state_fusion_readout
from vssm.ops.state_gather import state_gather

if TYPE_CHECKING:
    from vssm.ops.self_check import self_test

__all__ = [
    "BIDIRECTIONAL",
    "CROSS",
    "RASTER",
    "UNIDIRECTIONAL",
    "PathUnavailable",
    "Route",
    "SlowPathWarning",
    "batch_norm",
    "batch_norm_linear",
    "bottleneck",
    "causal_conv1d",
    "conv2d",
    "depthwise_conv3x3",
    "explain",
    "fold_kernels",
    "layer_norm",
    "linear",
    "mlp",
    "rms_norm",
    "selective_scan",
    "selective_scan_states",
    "self_test",
    "ss2d",
    "ss2d_cascade",
    "ss2d_readout",
    "ss2d_states",
    "state_fusion",
    "state_fusion_readout",
    "state_gather",
    "use",
]


def __getattr__(name: str) -> Any:
    """`vssm.ops.self_test`, which nothing else needs, on first use."""
    if name == "self_test":
        from vssm.ops.self_check import self_test

        return self_test
    raise AttributeError(f"module 'vssm.ops' has no attribute {name!r}")
