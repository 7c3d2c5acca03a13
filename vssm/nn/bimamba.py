"""Vim's bidirectional mixer: two Mamba branches, one of them backwards in time."""

# torch's layers do not annotate their device and dtype.
# pyright: reportUnknownMemberType=false

import math

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from vssm.nn.projection import Projections
from vssm.nn.ssm import SSM
from vssm.ops import Route, causal_conv1d

__all__ = ["BidirectionalMamba", "CausalConv1d", "MambaBranch"]


class CausalConv1d(nn.Conv1d):
    """Causal depthwise convolution with SiLU along the pixels of NHWC maps in raster order, or against it."""

    def __init__(self, dim: int, width: int = 4, reverse: bool = False):
        super().__init__(dim, dim, width, groups=dim)
        self.reverse = reverse

    def forward(self, input: Tensor) -> Tensor:
        x = input.flatten(1, 2).transpose(1, 2)
        x = causal_conv1d(x, self.weight.squeeze(1), self.bias, "silu", self.reverse)
        return x.transpose(1, 2).view(input.shape)


register_notrace_module(CausalConv1d)


class MambaBranch(SSM):
    """Causal convolution, SiLU and selective scan of a map in raster order, or against it.

    x (B, H, W, E) -> (B, H, W, E), at least float32. Mamba (arXiv 2312.00752), figure 3, without projections and gate.
    """

    def __init__(
        self,
        inner_dim: int,
        d_state: int,
        dt_rank: int,
        conv_width: int = 4,
        reverse: bool = False,
        discretization: str = "euler",
    ):
        super().__init__(inner_dim, d_state, dt_rank, (Route("rows", -1 if reverse else 1),), discretization)
        self.conv = CausalConv1d(inner_dim, conv_width, reverse)

    def forward(self, x: Tensor) -> Tensor:
        return self.scan(self.conv(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class BidirectionalMamba(Projections):
    """in_proj, a forward and a backward branch, their mean gated by SiLU(z), out_proj.

    x (B, H, W, dim) -> (B, H, W, dim), plus a residual of that shape if given. Tokens with a class token among them
    are a map of one row. Vim (arXiv 2401.09417), algorithm 1; the division by 2 is that of the released models.

    Args:
        dim: width of the tokens.
        d_state: N.
        ssm_ratio: E = int(ssm_ratio * dim) channels are scanned.
        dt_rank: R; None for ceil(dim / 16).
        conv_width: taps of the causal convolutions.
        discretization: how B enters: "euler" (dt B) or "zoh", see `vssm.ops.discretization`.

    `set_state_fn` puts a module between states and readout of both branches, each its own.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        conv_width: int = 4,
        discretization: str = "euler",
    ):
        super().__init__()
        inner = int(ssm_ratio * dim)
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        if min(d_state, inner, rank, conv_width) < 1:
            raise ValueError(
                f"d_state, int(ssm_ratio * dim), dt_rank and conv_width must be at least 1, got {d_state}, "
                f"{ssm_ratio} * {dim}, {rank} and {conv_width}"
            )
        self.inner_dim, self.d_state, self.dt_rank = inner, d_state, rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.forward_branch = MambaBranch(inner, d_state, rank, conv_width, False, discretization)
        self.backward_branch = MambaBranch(inner, d_state, rank, conv_width, True, discretization)
        self.adaptor_s: nn.Module | None = None
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    def set_adaptor_s(self, adaptor: nn.Module | None) -> None:
        """Put a module on the sum of both branches, or take it away: called with y (B, E, H, W), and with u, what both
        branches read, it gives the next y."""
        self.adaptor_s = adaptor

    def set_state_fn(self, forward: nn.Module | None, backward: nn.Module | None) -> None:
        """Put modules between states and readout, h (B, 1, E, N, H, W) -> the same, or take them away."""
        self.forward_branch.set_state_fn(forward)
        self.backward_branch.set_state_fn(backward)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the authors initialise: Mamba's rule for the forward branch; the backward one has a linear layer's
        default weight and a zero bias for dt, so it starts with steps near softplus(0) = 0.69."""
        self.forward_branch.reset_ssm("mamba")
        backward = self.backward_branch
        backward.reset_ssm("mamba")
        bound = self.dt_rank**-0.5
        backward.dt_proj_weight.uniform_(-bound, bound)
        backward.dt_proj_bias.zero_()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        u, z = self.project_and_gate(x, self.inner_dim)
        y = self.forward_branch(u) + self.backward_branch(u)
        if self.adaptor_s is not None:
            y = self.adaptor_s(y.permute(0, 3, 1, 2), u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = y * (0.5 * F.silu(z.to(y.dtype)))
        return self.project_out(y.to(u.dtype), residual)

    def extra_repr(self) -> str:
        return f"d_state={self.d_state}, dt_rank={self.dt_rank}"


register_notrace_module(BidirectionalMamba)
