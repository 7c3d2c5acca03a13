"""What every mixer of this package has inside: the parameters of an SSM on maps, and its scan."""

# Tensor.unflatten has no annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.nn.init import init_ssm
from vssm.nn.shortcut import Shortcut, as_built
from vssm.nn.state_fusion import StateFusion
from vssm.ops import Route, ss2d, ss2d_cascade, ss2d_readout, ss2d_states
from vssm.ops.discretization import is_zoh
from vssm.ops.routes import encode

__all__ = ["SSM"]


class SSM(Shortcut):
    """The selective state space model of a map along K routes, merged: `scan`, (B, E, H, W) -> (B, E, H, W).

    Parameters, and nothing else: subclasses call `scan` where their mixer has it.

        x_proj_weight (K, R+2N, E), dt_proj_weight (K, E, R), dt_proj_bias (K, E), A_log (K*E, N), D (K*E,)

    Args:
        inner_dim: E, channels that are scanned.
        d_state: N.
        dt_rank: R.
        routes: the routes, or None for the cascade: rows, then columns, four parameter groups.
        discretization: how B enters, "euler" or "zoh", see `vssm.ops.discretization`.
    """

    def __init__(
        self,
        inner_dim: int,
        d_state: int,
        dt_rank: int,
        routes: tuple[Route, ...] | None,
        discretization: str = "euler",
    ):
        super().__init__()
        self.inner_dim, self.d_state, self.dt_rank = inner_dim, d_state, dt_rank
        self.zoh, self.discretization = is_zoh(discretization), discretization
        self.cascade = routes is None
        if not self.shortcuts:
            _check_scriptable(self.cascade, self.zoh)
        self.routes: tuple[Route, ...] = () if routes is None else routes
        self.route_codes = [] if routes is None else encode(routes)
        groups = 4 if routes is None else len(routes)
        self.x_proj_weight = nn.Parameter(torch.empty(groups, dt_rank + 2 * d_state, inner_dim))
        self.dt_proj_weight = nn.Parameter(torch.empty(groups, inner_dim, dt_rank))
        self.dt_proj_bias = nn.Parameter(torch.empty(groups, inner_dim))
        self.A_log = nn.Parameter(torch.empty(groups * inner_dim, d_state))
        self.D = nn.Parameter(torch.empty(groups * inner_dim))
        self.state_fn: nn.Module | None = None
        self.adaptor_t: nn.Module | None = None
        self.adaptor_s: nn.Module | None = None

    def set_adaptor_t(self, adaptor: nn.Module | None) -> None:
        """Put a module behind state_fn, of the same form, or take it away."""
        if self.cascade and adaptor is not None:
            raise ValueError("the cascade scan has no states on one grid, so it takes no adaptor_t; use scan='cross'")
        self.adaptor_t = adaptor

    def set_adaptor_s(self, adaptor: nn.Module | None) -> None:
        """Put a module behind the merge, or take it away. It is called with y (B, E, H, W), at least float32, and
        with u, what was scanned, and returns the next y."""
        self.adaptor_s = adaptor

    def set_state_fn(self, state_fn: nn.Module | None) -> None:
        """Put a module between states and readout, h (B, K, E, N, H, W) -> the same, or take it away."""
        if self.cascade and state_fn is not None:
            raise ValueError("the cascade scan has no states on one grid, so it takes no state_fn; use scan='cross'")
        self.state_fn = state_fn

    def reset_ssm(self, init: str) -> None:
        """Fill the five parameters, see `vssm.nn.init.init_ssm`."""
        init_ssm(self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias, self.A_log, self.D, init)

    def scan(self, u: Tensor) -> Tensor:
        """u (B, E, H, W) -> y (B, E, H, W), at least float32."""
        y = self._scan(u)
        return y if self.adaptor_s is None else self.adaptor_s(y, u)

    def _scan(self, u: Tensor) -> Tensor:
        A = -torch.exp(_at_least_float32(self.A_log))
        return self._scan_in_python(u, A) if self.shortcuts else self._scan_scriptable(u, A)

    @torch.jit.unused
    def _scan_in_python(self, u: Tensor, A: Tensor) -> Tensor:
        weights = (self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias, A)
        state_fn, adaptor_t = self.state_fn, self.adaptor_t
        if self.cascade:
            return ss2d_cascade(u, *weights, self.D, discretization=self.discretization)
        if state_fn is None and adaptor_t is None:
            return ss2d(u, *weights, self.D, self.routes, self.discretization)
        if adaptor_t is None and not self.zoh and as_built(state_fn, StateFusion):
            return state_fn.scan(u, weights, self.D, self.routes)
        h, C = ss2d_states(u, *weights, self.routes, self.discretization)
        h = h if state_fn is None else state_fn(h)
        h = h if adaptor_t is None else adaptor_t(h)
        return ss2d_readout(h, C, u, self.D)

    def _scan_scriptable(self, u: Tensor, A: Tensor) -> Tensor:
        """The same for TorchScript, which knows neither routes as objects nor Python operators."""
        proj = F.linear(u.permute(0, 2, 3, 1), self.x_proj_weight.flatten(0, 1).to(u.dtype))
        weight, bias = self.dt_proj_weight, self.dt_proj_bias
        if self.state_fn is None and self.adaptor_t is None:
            return torch.ops.vssm.ss2d(u, proj, weight, bias, A, self.D, self.route_codes, "")
        else:
            h = torch.ops.vssm.ss2d_states(u, proj, weight, bias, A, self.route_codes, "")
            if self.state_fn is not None:
                h = self.state_fn(h)
            if self.adaptor_t is not None:
                h = self.adaptor_t(h)
            groups, inner, rank = weight.shape
            C = proj.unflatten(3, [groups, rank + 2 * self.d_state])[:, :, :, :, rank + self.d_state :]
            skip = self.D.to(h.dtype).view(groups, inner).sum(0)
            return torch.ops.vssm.ss2d_readout(h, C.permute(0, 3, 4, 1, 2), u, skip, "")


def _check_scriptable(cascade: bool, zoh: bool) -> None:
    if cascade:
        raise ValueError("the cascade scan cannot be scripted; use torch.export, or another scan")
    if zoh:
        raise ValueError("a scan with zero-order hold cannot be scripted; use torch.export, or discretization='euler'")


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x
