"""Blending of states with torch's own sampling, which holds the K samples of every state at once.

Its gradients cannot be differentiated further; the reference's can.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _grid(offsets: Tensor) -> Tensor:
    """Offsets (B, S, K, 2, H, W) as a sampling grid (B*S, K*H, W, 2): x then y, -1 and 1 the outer edges of the map."""
    H, W = offsets.shape[-2:]
    rows = torch.arange(H, dtype=offsets.dtype, device=offsets.device)[:, None] + offsets[:, :, :, 0]
    columns = torch.arange(W, dtype=offsets.dtype, device=offsets.device) + offsets[:, :, :, 1]
    grid = torch.stack([(2 * columns + 1) / W - 1, (2 * rows + 1) / H - 1], dim=-1)
    return grid.flatten(0, 1).flatten(1, 2)


def grid_sampled(h: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """See the public function; one dtype throughout."""
    maps = h.flatten(0, 1).flatten(1, 2)
    samples = F.grid_sample(maps, _grid(offsets), mode="bilinear", padding_mode="zeros", align_corners=False)
    samples = samples.unflatten(2, weights.shape[2:4]) * weights.flatten(0, 1).unsqueeze(1)
    return samples.sum(2).view(h.shape)
