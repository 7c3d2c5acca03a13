"""Reference implementation: blending of states; the ground truth for all backends."""

import torch
from torch import Tensor


def state_gather(h: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """sum_k weight_k(p) h(p + offset_k(p)), bilinear, zero outside; shapes as the public function."""
    H, W = h.shape[-2:]
    rows = torch.arange(H, dtype=h.dtype, device=h.device)[:, None] + offsets[:, :, :, 0]
    columns = torch.arange(W, dtype=h.dtype, device=h.device) + offsets[:, :, :, 1]
    top, left = rows.detach().floor(), columns.detach().floor()
    fy, fx = rows - top, columns - left  # the place within its cell; on a pixel, of the cell below and to the right
    y = torch.zeros_like(h)
    for k in range(weights.shape[2]):
        for down in (0, 1):
            for right in (0, 1):
                row, column = top[:, :, k] + down, left[:, :, k] + right
                share = fy[:, :, k] if down else 1 - fy[:, :, k]
                share = share * (fx[:, :, k] if right else 1 - fx[:, :, k])
                inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
                index = (row.clamp(0, H - 1) * W + column.clamp(0, W - 1)).long()
                index = index.flatten(2)[:, :, None, None].expand(*h.shape[:4], H * W)
                neighbour = h.flatten(4).gather(4, index).view(h.shape)
                share = torch.where(inside, share * weights[:, :, k], 0.0)
                y = y + share[:, :, None, None] * neighbour
    return y
