"""Blending of states with torch's own sampling, which holds the K samples of every state at once."""

import torch
from torch import Tensor

from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import to

_aten = torch.ops.aten
_BILINEAR, _ZEROS = 0, 0


def _grid(offsets: Tensor) -> Tensor:
    """Offsets (B, S, K, 2, H, W) as a sampling grid (B*S, K*H, W, 2): x then y, -1 and 1 the outer edges of the map."""
    H, W = offsets.shape[-2:]
    rows = torch.arange(H, dtype=offsets.dtype, device=offsets.device)[:, None] + offsets[:, :, :, 0]
    columns = torch.arange(W, dtype=offsets.dtype, device=offsets.device) + offsets[:, :, :, 1]
    grid = torch.stack([(2 * columns + 1) / W - 1, (2 * rows + 1) / H - 1], dim=-1)
    return grid.flatten(0, 1).flatten(1, 2)


def _maps(h: Tensor) -> Tensor:
    return h.flatten(0, 1).flatten(1, 2)


def _like_states(y: Tensor) -> Tensor:
    """In the memory of (B, S, N, H, W, C)."""
    return y.permute(0, 1, 3, 4, 5, 2).contiguous().permute(0, 1, 5, 2, 3, 4)


def forward(h: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """See the public function."""
    h, offsets, weights = to(at_least_float32(h, offsets, weights), h, offsets, weights)
    K, H = weights.shape[2:4]
    samples = _aten.grid_sampler_2d(_maps(h), _grid(offsets), _BILINEAR, _ZEROS, False)
    samples = samples.unflatten(2, (K, H)) * weights.flatten(0, 1).unsqueeze(1)
    return _like_states(samples.sum(2).view(h.shape))


def backward(gy: Tensor, h: Tensor, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dh, doffsets, dweights in the compute dtype."""
    gy, h, offsets, weights = to(at_least_float32(h, offsets, weights), gy, h, offsets, weights)
    (K, H, W), g = weights.shape[2:], _maps(gy).unsqueeze(2)
    maps, grid = _maps(h), _grid(offsets)
    samples = _aten.grid_sampler_2d(maps, grid, _BILINEAR, _ZEROS, False).unflatten(2, (K, H))
    dweights = (samples * g).sum(1).view(weights.shape)
    dsamples = (weights.flatten(0, 1).unsqueeze(1) * g).flatten(2, 3)
    dmaps, dgrid = _aten.grid_sampler_2d_backward(dsamples, maps, grid, _BILINEAR, _ZEROS, False, [True, True])
    dgrid = dgrid.view(*weights.shape, 2)
    doffsets = torch.stack([dgrid[..., 1] * (2 / H), dgrid[..., 0] * (2 / W)], dim=3)
    return _like_states(dmaps.view(h.shape)), doffsets, dweights
