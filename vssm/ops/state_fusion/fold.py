"""The dilated kernels of state fusion as one kernel."""

import torch
from torch import Tensor


def reaching(h: Tensor, dilations: list[int]) -> list[int]:
    """The dilations cut off at the longer side of the map h, from where on a tap sees the repeated border anyway."""
    size = max(h.shape[2], h.shape[3])
    return [min(d, size) for d in dilations]


def fold_kernels(kernels: list[Tensor] | Tensor, alphas: Tensor, dilations: list[int]) -> Tensor:
    """One kernel that does the work of all: alpha_i K_i on the grid of dilation i, taps that coincide added.

    Args:
        kernels: n tensors (C, 1, k, k), listed or stacked; k odd.
        alphas: (n,).
        dilations: n positive integers, at least one.

    Returns:
        (C, 1, S, S) with S = 1 + (k - 1) max(dilations); differentiable. For 3x3 kernels and dilations 1, 3, 5:
        11x11 with 25 of 121 taps.
    """
    half = kernels[0].shape[-1] // 2
    reach = half * max(dilations)
    folded = kernels[0].new_zeros(kernels[0].shape[0], 1, 2 * reach + 1, 2 * reach + 1)
    for i, dilation in enumerate(dilations):
        grid = slice(reach - half * dilation, reach + half * dilation + 1, dilation)
        folded[:, :, grid, grid] += alphas[i] * kernels[i]
    return folded


def unfold_gradient(dfolded: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]) -> tuple[Tensor, Tensor]:
    """Gradients of `fold_kernels` by the kernels (n, C, 1, k, k) and the alphas."""
    half = kernels.shape[-1] // 2
    reach = half * max(dilations)
    grids = [slice(reach - half * d, reach + half * d + 1, d) for d in dilations]
    dtaps = torch.stack([dfolded[:, :, grid, grid] for grid in grids])
    return alphas[:, None, None, None, None] * dtaps, (kernels * dtaps).flatten(1).sum(1)
