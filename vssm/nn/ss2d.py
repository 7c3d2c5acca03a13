"""The 2-D selective scan as a mixer of NHWC maps, for VMamba and Spatial-Mamba."""

import math

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from vssm.nn.choices import check_choice
from vssm.nn.conv import DepthwiseConv3x3
from vssm.nn.init import init_linear, init_ssm
from vssm.nn.linear import Linear
from vssm.nn.norm import LayerNorm
from vssm.nn.state_fusion import StateFusion
from vssm.nn.watch import is_plain
from vssm.ops import (
    BIDIRECTIONAL,
    CROSS,
    RASTER,
    UNIDIRECTIONAL,
    Route,
    linear,
    ss2d,
    ss2d_cascade,
    ss2d_readout,
    ss2d_states,
)
from vssm.ops.routes import encode

SCANS: dict[str, tuple[Route, ...]] = {
    "cross": CROSS,
    "unidirectional": UNIDIRECTIONAL,
    "bidirectional": BIDIRECTIONAL,
    "raster": RASTER,
    "cascade": (),  # rows, then columns: two scans one after the other, four parameter groups
}
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}
GATES = ("none", "act", "linear")


class SS2D(nn.Module):
    """in_proj, depthwise convolution, activation, scan along K routes, out_norm, gate, out_proj.

    x (B, H, W, dim) -> (B, H, W, dim), plus a residual of that shape if given. VMamba (arXiv 2401.10166), figure 3 and
    section 4.4; Spatial-Mamba (arXiv 2410.15091), figure 3, is the scan "raster" with a `StateFusion` as state_fn.

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
            `nn.Identity()` gives the same numbers through the split one.

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
    ):
        super().__init__()
        if isinstance(scan, str):
            check_choice("scan", scan, SCANS)
        check_choice("act", act, ACTIVATIONS)
        gate = {False: "none", True: "act"}.get(gate, gate)  # type: ignore[call-overload]
        check_choice("gate", gate, GATES)
        if d_state < 1 or int(ssm_ratio * dim) < 1:
            raise ValueError(
                f"d_state and int(ssm_ratio * dim) must be at least 1, got {d_state} and {ssm_ratio} * {dim}"
            )
        self.cascade = scan == "cascade"
        if dt_rank is not None and dt_rank < 1:
            raise ValueError(f"dt_rank must be at least 1, or None for ceil(dim / 16), got {dt_rank}")
        routes = SCANS[scan] if isinstance(scan, str) else tuple(scan)
        groups = 4 if self.cascade else len(routes)
        inner = int(ssm_ratio * dim)
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank

        self.inner_dim, self.d_state, self.dt_rank = inner, d_state, rank
        self.routes = routes
        self.route_codes = [] if self.cascade else encode(routes)
        self.act, self.gate, self.init = act, str(gate), init

        self.x_proj_weight = nn.Parameter(torch.empty(groups, rank + 2 * d_state, inner))
        self.dt_proj_weight = nn.Parameter(torch.empty(groups, inner, rank))
        self.dt_proj_bias = nn.Parameter(torch.empty(groups, inner))
        self.A_log = nn.Parameter(torch.empty(groups * inner, d_state))
        self.D = nn.Parameter(torch.empty(groups * inner))
        self.in_proj = Linear(dim, inner if gate == "none" else 2 * inner, bias=False)
        # The convolution applies SiLU itself, in the pass that writes its result.
        self.conv_acts = conv and act == "silu"
        self.conv = DepthwiseConv3x3(inner, conv_bias, "silu" if self.conv_acts else "none") if conv else None
        self.state_fn: nn.Module | None = None
        self.out_norm = LayerNorm(inner)
        self.out_proj = Linear(inner, dim, bias=False)
        self.set_state_fn(state_fn)
        self.reset_parameters()

    def set_state_fn(self, state_fn: nn.Module | None) -> None:
        """Put a module between states and readout, or take it away."""
        if self.cascade and state_fn is not None:
            raise ValueError("the cascade scan has no states on one grid, so it takes no state_fn; use scan='cross'")
        self.state_fn = state_fn

    def reset_parameters(self) -> None:
        """Initialise the SSM by `init` and the two projections as every linear layer."""
        init_ssm(self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias, self.A_log, self.D, self.init)
        init_linear(self.in_proj)
        init_linear(self.out_proj)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        u, z = self._project(x)
        if self.conv is not None:
            u = self.conv(u)
        if not self.conv_acts:
            u = _activate(u, self.act)
        y = self._scan(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if z is None:
            y = self.out_norm(y)
        elif self.gate == "act" and self.act == "silu":
            y = self.out_norm(y, z)
        else:
            y = self.out_norm(y) * (_activate(z, self.act) if self.gate == "act" else z)
        return self._project_out(y.to(u.dtype), residual)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.gate == "none":
            return self.in_proj(x), None
        # Two products rather than one and a split: both halves come out contiguous.
        weight = self.in_proj.weight
        if torch.jit.is_scripting():
            return F.linear(x, weight[: self.inner_dim]), F.linear(x, weight[self.inner_dim :])
        elif is_plain(self.in_proj, Linear):
            return linear(x, weight[: self.inner_dim]), linear(x, weight[self.inner_dim :])
        else:
            u, z = self.in_proj(x).chunk(2, dim=-1)
            return u, z

    def _project_out(self, y: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None:
            return self.out_proj(y)
        if torch.jit.is_scripting():
            return residual + self.out_proj(y)
        elif is_plain(self.out_proj, Linear):
            return self.out_proj(y, residual)
        else:
            return residual + self.out_proj(y)

    def _scan(self, u: Tensor) -> Tensor:
        """u (B, E, H, W) -> y (B, E, H, W), at least float32."""
        A = -torch.exp(_at_least_float32(self.A_log))
        if torch.jit.is_scripting():
            return self._scan_scripted(u, A)
        elif self.cascade:
            return ss2d_cascade(u, self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias, A, self.D)
        elif self.state_fn is None:
            return ss2d(u, self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias, A, self.D, self.routes)
        else:
            state_fn = self.state_fn
            weights = (self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias, A)
            if is_plain(state_fn, StateFusion):
                return state_fn.scan(u, weights, self.D, self.routes)
            h, C = ss2d_states(u, *weights, self.routes)
            return ss2d_readout(state_fn(h), C, u, self.D)

    def __prepare_scriptable__(self) -> "SS2D":
        """Called by torch.jit.script before it compiles."""
        if self.cascade:
            raise ValueError("the cascade scan cannot be scripted; use torch.export, or another scan")
        return self

    def _scan_scripted(self, u: Tensor, A: Tensor) -> Tensor:
        """`_scan` for TorchScript, which knows neither routes as objects nor Python operators."""
        proj = F.linear(u.permute(0, 2, 3, 1), self.x_proj_weight.flatten(0, 1).to(u.dtype))
        weight, bias = self.dt_proj_weight, self.dt_proj_bias
        if self.state_fn is None:
            return torch.ops.vssm.ss2d(u, proj, weight, bias, A, self.D, self.route_codes, "")
        else:
            h = self.state_fn(torch.ops.vssm.ss2d_states(u, proj, weight, bias, A, self.route_codes, ""))
            groups, inner, rank = weight.shape
            C = proj.unflatten(3, [groups, rank + 2 * self.d_state])[:, :, :, :, rank + self.d_state :]
            C = C.permute(0, 3, 4, 1, 2).to(h.dtype)
            y = (h * C.unsqueeze(2)).sum([1, 3])
            return y + u.to(h.dtype) * self.D.to(h.dtype).view(groups, inner).sum(0)[:, None, None]

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


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x
