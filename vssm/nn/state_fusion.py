"""Structure-aware state fusion (Spatial-Mamba, arXiv 2410.15091, section 4.1) as a mixer's `state_fn`."""

from collections.abc import Sequence
from functools import partial, reduce
from itertools import starmap

import torch
from torch import Tensor, nn

from vssm.nn.states import as_map, as_states
from vssm.ops import Route, ss2d_readout, ss2d_states, state_fusion, state_fusion_readout

__all__ = ["StateFusion"]


class StateFusion(nn.Module):
    """Replace every state by a weighted sum of states around it: dilated depthwise kernels, replicate border.

        f = sum_i alpha_i (K_i * h)        K_i has dilation d_i

    h (B, K, C, N, H, W) -> the same shape and dtype. Each of the K*C channels has its own kernels; its N states share
    them. At the start every weight is 1: f is the plain sum of 9 neighbours per dilation.

    Args:
        dim: channels C of the mixer.
        routes: K.
        d_state: N.
        dilations: one kernel for each.
        kernel_size: side of every kernel, odd. The compiled core and Triton have 3; others are torch's convolutions.
    """

    def __init__(
        self,
        dim: int,
        routes: int = 1,
        d_state: int = 1,
        dilations: Sequence[int] = (1, 3, 5),
        kernel_size: int = 3,
    ):
        super().__init__()
        if len(dilations) == 0 or any(d < 1 for d in dilations):
            raise ValueError(
                f"dilations must be positive and at least one, got {tuple(dilations)}; for no fusion use no state_fn"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, got {kernel_size}")
        self.d_state = d_state
        shape = (routes * dim, 1, kernel_size, kernel_size)
        self.dilations, self.kernel_size = list(dilations), kernel_size
        self.kernels = nn.ParameterList(nn.Parameter(torch.ones(*shape)) for _ in dilations)
        self.alphas = nn.Parameter(torch.ones(len(dilations)))

    def forward(self, h: Tensor) -> Tensor:
        return as_states(state_fusion(as_map(h), self._per_state(), self.alphas, self.dilations), h)

    def _per_state(self) -> list[Tensor]:
        kernels: list[Tensor] = []
        for kernel in self.kernels:
            kernels.append(kernel.repeat_interleave(self.d_state, 0) if self.d_state > 1 else kernel)
        return kernels

    @torch.jit.unused
    def scan(
        self, u: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], D: Tensor, routes: tuple[Route, ...]
    ) -> Tensor:
        """States of the scan of u, fused and read out: `ss2d_readout(self(h), C, u, D)`, with fusion and readout in one
        pass where there is one state per channel.

        weights are x_proj_weight, dt_weight, dt_bias and A of `vssm.ops.ss2d`.
        """
        if self.d_state > 1:
            states = ss2d_states(u, *weights, routes)
            return ss2d_readout(self(states[0]), states[1], u, D)
        parameters = (*weights, D, *self.kernels)
        if len(routes) == 1:
            return self._scan_route(u, routes[0], parameters)
        # Route by route, so that no map of the states of all is ever made.
        parts = zip(*(parameter.chunk(len(routes)) for parameter in parameters), strict=True)
        return reduce(torch.add, starmap(partial(self._scan_route, u), zip(routes, parts, strict=True)))

    def _scan_route(self, u: Tensor, route: Route, parameters: Sequence[Tensor]) -> Tensor:
        x_proj_weight, dt_weight, dt_bias, A, D, *kernels = parameters
        h, C = ss2d_states(u, x_proj_weight, dt_weight, dt_bias, A, (route,))
        return state_fusion_readout(as_map(h), kernels, self.alphas, C.squeeze(1), u, D, self.dilations)

    def extra_repr(self) -> str:
        return f"dilations={tuple(self.dilations)}, kernel_size={self.kernel_size}"
