"""The 2-D selective scan as a mixer of NHWC maps, for VMamba and Spatial-Mamba."""

import math

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from vssm.nn.choices import check_choice
from vssm.nn.conv import DepthwiseConv3x3
from vssm.nn.init import init_linear
from vssm.nn.norm import LayerNorm
from vssm.nn.projection import Projections
from vssm.nn.shortcut import as_built
from vssm.nn.ssm import SSM
from vssm.ops import BIDIRECTIONAL, CROSS, RASTER, UNIDIRECTIONAL, Route

__all__ = ["ACTIVATIONS", "GATES", "SCANS", "SS2D"]

SCANS: dict[str, tuple[Route, ...] | None] = {
    "cross": CROSS,
    "unidirectional": UNIDIRECTIONAL,
    "bidirectional": BIDIRECTIONAL,
    "raster": RASTER,
    "cascade": None,  # Cascade-Scan: rows, then columns, one scan after the other, four parameter groups
}
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}
GATES = ("none", "act", "linear")


class SS2D(SSM, Projections):
    """in_proj, depthwise convolution, activation, scan along K routes, out_norm, gate, out_proj.

    x (B, H, W, dim) -> (B, H, W, dim), plus a residual of that shape if given. VMamba (arXiv 2401.10166),
    section 4.2, figures 2 (the cross-scan) and 3; Spatial-Mamba (arXiv 2410.15091), figure 4, is the scan "raster" with
    a `StateFusion` as state_fn.

    Args:
        dim: width of the stage, C.
        d_state: N.
        ssm_ratio: E = int(ssm_ratio * dim) channels are scanned.
        dt_rank: R; None for ceil(dim / 16).
        scan: "cross", "unidirectional", "bidirectional", "cascade", "raster", or a tuple of `vssm.ops.Route`.
        conv, conv_bias: depthwise 3x3 convolution before the activation, and its bias.
        act: "silu", "gelu" or "relu".
        gate: False (or "none"); True (or "act"): multiply by act(z), z a second half of in_proj; "linear": by z.
        init: "mamba", "rand" or "zero", see `vssm.nn.init.init_ssm`.
        state_fn: module between states and readout, h (B, K, E, N, H, W) -> the same; None runs the fused path,
            `nn.Identity()` gives the same values through the split one.
        discretization: how B enters: "euler" (dt B) or "zoh", see `vssm.ops.discretization`.

    Under autocast the projections run in half precision; the scan and its states never do.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        scan: str | tuple[Route, ...] = "cross",
        conv: bool = True,
        conv_bias: bool = True,
        act: str = "silu",
        gate: bool | str = False,
        init: str = "mamba",
        state_fn: nn.Module | None = None,
        discretization: str = "euler",
    ):
        if isinstance(scan, str):
            check_choice("scan", scan, SCANS)
        check_choice("act", act, ACTIVATIONS)
        of_bool: dict[bool | str, bool | str] = {False: "none", True: "act"}
        gate = of_bool.get(gate, gate)
        check_choice("gate", gate, GATES)
        if d_state < 1 or int(ssm_ratio * dim) < 1:
            raise ValueError(
                f"d_state and int(ssm_ratio * dim) must be at least 1, got {d_state} and {ssm_ratio} * {dim}"
            )
        if dt_rank is not None and dt_rank < 1:
            raise ValueError(f"dt_rank must be at least 1, or None for ceil(dim / 16), got {dt_rank}")
        inner = int(ssm_ratio * dim)
        routes = SCANS[scan] if isinstance(scan, str) else tuple(scan)
        dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        super().__init__(inner, d_state, dt_rank, routes, discretization)
        self.act, self.gate, self.init = act, str(gate), init

        self.in_proj = nn.Linear(dim, inner if gate == "none" else 2 * inner, bias=False)
        # The convolution applies SiLU itself, in the pass that writes its result.
        self.conv_acts = conv and act == "silu"
        self.conv = DepthwiseConv3x3(inner, conv_bias, "silu" if self.conv_acts else "none") if conv else None
        self.out_norm = LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.set_state_fn(state_fn)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the SSM by `init` and the two projections as every linear layer."""
        self.reset_ssm(self.init)
        init_linear(self.in_proj)
        init_linear(self.out_proj)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        u, z = self._project(x)
        if self.conv is not None:
            u = self.conv(u)
        if not self.conv_acts:
            u = _activate(u, self.act)
        y = self.scan(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.out_norm(y) if z is None else self._norm_and_gate(y, z)
        return self.project_out(y.to(u.dtype), residual)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.gate == "none":
            return self.project_in(x), None
        return self.project_and_gate(x, self.inner_dim)

    def _norm_and_gate(self, y: Tensor, z: Tensor) -> Tensor:
        if self.shortcuts and self._norm_gates():
            return self.out_norm(y, z)
        return self.out_norm(y) * (_activate(z, self.act) if self.gate == "act" else z)

    @torch.jit.unused
    def _norm_gates(self) -> bool:
        """Whether the norm multiplies by SiLU(z) in the pass that writes its result."""
        return self.gate == "act" and self.act == "silu" and as_built(self.out_norm, LayerNorm)

    def extra_repr(self) -> str:
        routes = "cascade" if self.cascade else len(self.routes)
        return f"d_state={self.d_state}, dt_rank={self.dt_rank}, routes={routes}, gate={self.gate}"


register_notrace_module(SS2D)


def _activate(x: Tensor, act: str) -> Tensor:
    if act == "silu":
        return F.silu(x)
    if act == "gelu":
        return F.gelu(x)
    return F.relu(x)
