"""The operators around the scan for gpu.py: one call of each, as in the first stage of the models."""

from collections.abc import Callable

import torch
from gpu_bench import Bench
from torch import Tensor

from vssm.ops import (
    causal_conv1d,
    depthwise_conv3x3,
    layer_norm,
    rms_norm,
    ss2d_readout,
    state_fusion,
    state_gather,
)

Call = tuple[Callable, list[Tensor]]


def around(bench: Bench, batch: int, half: bool = False) -> dict[str, Call]:
    """A function and the tensors that it takes by name of operator. half: maps as under autocast in bfloat16, where
    states and the residual stream stay float32."""
    side, channels = (3, 4) if bench.smallest else (56, 96)
    dtype = torch.bfloat16 if half else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=bench.device)

    def states(K: int) -> Tensor:
        return normal(batch, K, 1, side, side, channels).permute(0, 1, 5, 2, 3, 4)

    rows, map_rows = normal(batch, side, side, channels), normal(batch, side, side, channels).to(dtype)
    x, weight, bias = map_rows.permute(0, 3, 1, 2), normal(channels), normal(channels)
    C = normal(batch, 4, 1, side, side).to(dtype)
    kernels = [normal(channels, 1, 3, 3) for _ in range(3)]
    tokens = normal(batch, side**2, 2 * channels).to(dtype).mT
    # Between pixels and exact in float32: on a pixel the gradient of an offset is discontinuous.
    offsets = (64 * normal(batch, 4, 4, 2, side, side)).round() / 64 + 1 / 128
    mixture = torch.softmax(normal(batch, 4, 4, side, side), 2)
    return {
        "layer_norm": (layer_norm, [map_rows, weight, bias]),
        "layer_norm, gate": (lambda x, w, b, z: layer_norm(x, w, b, gate=z), [rows, weight, bias, map_rows]),
        "rms_norm": (rms_norm, [map_rows, weight]),
        "depthwise_conv3x3 + SiLU": (lambda x, w, b: depthwise_conv3x3(x, w, b, "silu"), [x, kernels[0], bias]),
        "ss2d_readout": (ss2d_readout, [states(4), C, x, normal(4 * channels)]),
        "state_fusion": (lambda h, a, *k: state_fusion(h, list(k), a), [states(1)[:, 0, :, 0], normal(3), *kernels]),
        "state_gather": (state_gather, [states(4), offsets, mixture]),
        "causal_conv1d + SiLU": (
            lambda x, w, b: causal_conv1d(x, w, b, "silu"),
            [tokens, normal(2 * channels, 4), normal(2 * channels)],
        ),
    }
