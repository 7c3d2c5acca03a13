"""The numeric core: pure functions on tensors, each with a reference, a torch path and a compiled CPU path.

`explain()` says which path runs here and why; `use("torch")` demands one.
"""

from vssm.ops.dispatch import PathUnavailable, SlowPathWarning, explain, use
from vssm.ops.routes import BIDIRECTIONAL, CROSS, RASTER, UNIDIRECTIONAL, Route
from vssm.ops.selective_scan import selective_scan, selective_scan_states
from vssm.ops.ss2d import ss2d, ss2d_cascade, ss2d_readout, ss2d_states

__all__ = [
    "BIDIRECTIONAL",
    "CROSS",
    "RASTER",
    "UNIDIRECTIONAL",
    "PathUnavailable",
    "Route",
    "SlowPathWarning",
    "explain",
    "selective_scan",
    "selective_scan_states",
    "ss2d",
    "ss2d_cascade",
    "ss2d_readout",
    "ss2d_states",
    "use",
]
