"""Modules on states as linear maps: what they predict from the states is kept, and what they weigh becomes free."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vssm.nn.adaptor import AdaptorS, AdaptorT
from vssm.nn.deformable_fusion import DeformableFusion
from vssm.nn.dynamic_fusion import DynamicFusion
from vssm.nn.local_attention_fusion import LocalAttentionFusion
from vssm.nn.state_fusion import StateFusion
from vssm.ops import state_fusion

__all__ = ["Linear", "Neighbours", "convolution_of", "frozen", "transposed"]

Linear = Callable[[Tensor], Tensor]


def frozen(module: nn.Module, h: Tensor) -> tuple[Linear, Tensor]:
    """The linear map that `module` is on states h (1, K, E, N, H, W), for batches of any size, and what it makes of h.

    A learned selection (offsets, coefficients) is that of h. ValueError for a module that is not known to be linear
    once what it selects is fixed.
    """
    kind = type(module)
    if kind not in _KINDS:
        known = ", ".join(known.__name__ for known in _KINDS)
        raise ValueError(
            f"the block has a {kind.__name__} between states and readout, whose share in the matrix is unknown; known "
            f"are {known}. State maps and receptive fields are there for all"
        )
    linear = _KINDS[kind](module, h)
    return linear, linear(h)


def transposed(linear: Linear, x: Tensor) -> Tensor:
    """The transpose of a linear map, applied to x, a batch of what it returns."""
    with torch.enable_grad():
        zero = torch.zeros_like(x, requires_grad=True)
        (found,) = torch.autograd.grad(linear(zero), zero, x)
    return found


class Neighbours:
    """A state fusion with fixed weights, as a linear map of states (Q, K, E, N, H, W).

    weights: (taps, K, E). offsets: (taps, 2), rows and columns from a pixel to the one whose state is weighed; behind
    the border, the border's.
    """

    def __init__(self, module: StateFusion, h: Tensor):
        self._kernels = [kernel.detach().to(h.dtype).repeat_interleave(module.d_state, 0) for kernel in module.kernels]
        self._alphas = module.alphas.detach().to(h.dtype)
        self._dilations = module.dilations
        around = torch.arange(module.kernel_size, device=h.device) - module.kernel_size // 2
        self.offsets = torch.cat([dilation * torch.cartesian_prod(around, around) for dilation in self._dilations])
        taps = [alpha * kernel.detach().to(h.dtype).flatten(1).T for alpha, kernel in zip(self._alphas, module.kernels)]
        self.weights = torch.cat(taps).unflatten(1, h.shape[1:3])

    def __call__(self, x: Tensor) -> Tensor:
        return state_fusion(x.flatten(1, 3), self._kernels, self._alphas, self._dilations).view_as(x)


def _chosen_by_states(module: DynamicFusion | DeformableFusion | LocalAttentionFusion, h: Tensor) -> Linear:
    def fuse(x: Tensor) -> Tensor:
        return module(h.expand(x.shape[0], *h.shape[1:]), x)

    return fuse


def _adaptor_t(module: AdaptorT, h: Tensor) -> Linear:
    offsets, weights = module.select(h)

    def combine(x: Tensor) -> Tensor:
        many = x.shape[0]
        return module.combine(x, offsets.expand(many, *offsets.shape[1:]), weights.expand(many, *weights.shape[1:]))

    return combine


def convolution_of(module: AdaptorS) -> Linear:
    """What an AdaptorS adds, as a linear map of what it reads: (Q, E, H, W) -> the same."""
    kernels = [kernel.detach().double() for kernel in module.kernels]

    def convolve(x: Tensor) -> Tensor:
        return state_fusion(x, kernels, torch.ones(len(kernels), dtype=x.dtype, device=x.device), module.dilations)

    return convolve


_KINDS: dict[type[nn.Module], Callable[..., Linear]] = {
    StateFusion: Neighbours,
    DynamicFusion: _chosen_by_states,
    DeformableFusion: _chosen_by_states,
    LocalAttentionFusion: _chosen_by_states,
    AdaptorT: _adaptor_t,
}
