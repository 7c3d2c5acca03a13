"""Deformable convolution of states (Dai et al. 2017, arXiv 1703.06211) as a mixer's `state_fn`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d  # pyright: ignore[reportMissingTypeStubs]

from vssm.nn.precision import FullPrecision, StateConv1x1
from vssm.nn.states import as_map, as_states, mean_state

__all__ = ["DeformableFusion"]


class DeformableFusion(FullPrecision):
    """`StateFusion` whose taps move: f = sum_i alpha_i sum_t K_i[t] h(p + d_i t + o_it(p)), read bilinearly.

    h (B, K, C, N, H, W) -> the same shape and dtype. The offsets o of a pixel, two for each tap of each dilation, are
    linear in its state, averaged over N; all channels of a route share them. At the start they are 0 and all weights 1:
    the plain fusion. The border repeats as far as the taps reach at rest; beyond that is zero.

    Args:
        dim: channels C of the mixer.
        routes: K.
        d_state: N.
        dilations: one 3 x 3 kernel for each.
    """

    def __init__(self, dim: int, routes: int = 1, d_state: int = 1, dilations: Sequence[int] = (1, 3, 5)):
        super().__init__()
        if len(dilations) == 0 or any(d < 1 for d in dilations):
            raise ValueError(f"dilations must be positive and at least one, got {tuple(dilations)}")
        self.routes, self.d_state, self.dilations = routes, d_state, list(dilations)
        self.kernels = nn.ParameterList(nn.Parameter(torch.ones(routes * dim, 1, 3, 3)) for _ in dilations)
        self.alphas = nn.Parameter(torch.ones(len(dilations)))
        self.offsets = StateConv1x1(routes * dim, routes * len(dilations) * 18, routes)
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)

    def _fuse(self, h: Tensor, values: Tensor | None = None) -> Tensor:
        x = as_map(h if values is None else values)
        offsets = self.offsets(mean_state(h)).unflatten(1, [self.routes, len(self.dilations), 18])
        alphas = self.alphas.to(h.dtype)
        fused = torch.zeros_like(x)
        for i, kernel in enumerate(self.kernels):
            d = self.dilations[i]
            weight = (alphas[i] * kernel.to(h.dtype)).repeat_interleave(self.d_state, 0)
            padded = F.pad(x, [d, d, d, d], mode="replicate")
            fused = fused + deform_conv2d(padded, offsets[:, :, i].flatten(1, 2), weight, dilation=(d, d))
        return as_states(fused, h)

    def extra_repr(self) -> str:
        return f"dilations={tuple(self.dilations)}"
