"""Reference implementation: state fusion; the ground truth for all backends.

Spatial-Mamba (arXiv 2410.15091), section 4.1: structure-aware state fusion.
"""

import torch
from torch import Tensor


def state_fusion(h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]) -> Tensor:
    """sum_i alpha_i sum_{u,v} K_i[c, u, v] h[c, clamp(y + u d_i), clamp(x + v d_i)]; h itself if no i."""
    if not dilations:
        return h
    rows, columns = torch.arange(h.shape[-2], device=h.device), torch.arange(h.shape[-1], device=h.device)
    fused = torch.zeros_like(h)
    for kernel, alpha, dilation in zip(kernels, alphas, dilations, strict=True):
        half = kernel.shape[-1] // 2
        for u in range(-half, half + 1):
            for v in range(-half, half + 1):
                y = (rows + u * dilation).clamp(0, h.shape[-2] - 1)
                x = (columns + v * dilation).clamp(0, h.shape[-1] - 1)
                fused = fused + alpha * kernel[:, 0, u + half, v + half, None, None] * h[:, :, y][..., x]
    return fused


def readout(fused: Tensor, C: Tensor, u: Tensor | None, D: Tensor | None) -> Tensor:
    """y = C * fused + D * u; C (B, 1, H, W) is shared by the channels, D (C,) by the pixels."""
    y = C * fused
    return y if D is None or u is None else y + D[:, None, None] * u
