"""The bottleneck that halves a map: 1x1 to many channels, ReLU, depthwise 3x3 with stride 2, ReLU, 1x1 to few."""

import torch
from torch import Tensor

from vssm.ops import checks
from vssm.ops.bottleneck import core, reference
from vssm.ops.operator import Operator, autocasts

__all__ = ["bottleneck"]


def _macs(x, weight1, bias1, weight2, bias2, weight3, *_) -> dict[str, int]:
    batch, height, width, dim = x
    wide, out = weight1[0], weight3[0]
    pixels, halved = batch * height * width, batch * ((height + 1) // 2) * ((width + 1) // 2)
    return {"conv": pixels * dim * wide + halved * wide * (9 + out)}


def _limit(x, weight1, *_) -> str | None:
    return None if x.dtype == weight1.dtype else "its products take tensors of one dtype"


_bottleneck = Operator(
    "bottleneck(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor weight3, Tensor bias3)"
    " -> Tensor",
    shape=lambda x, *weights: (x.shape[0], (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2, weights[-2].shape[0]),
    reference=reference.bottleneck,
    core=core,
    widens=False,
    macs=_macs,
    backward_macs=3,  # the wide maps once more
    limit=_limit,
    inlines="compile",
)


def bottleneck(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, weight3: Tensor, bias3: Tensor
) -> Tensor:
    """The downsampling of Spatial-Mamba (arXiv 2410.15091, as its released weights have it), without its norm.

    Args:
        x: (B, H, W, C) float32, float64, bfloat16 or float16.
        weight1, bias1: (M, C) and (M,).
        weight2, bias2: (M, 1, 3, 3) and (M,): stride 2, zero padding 1.
        weight3, bias3: (O, M) and (O,).

    Returns:
        (B, ceil(H/2), ceil(W/2), O), the dtype that `torch.nn.functional.linear` would give, under autocast too.

    Raises:
        ValueError: shapes or devices that do not fit; the message names the argument.

    On the CPU core all three convolutions run strip by strip of rows, so that the wide maps stay in the cache; the
    backward recomputes them from x. In half precision, and under autocast, the products are in half precision and the
    depthwise convolution is in float32. Elsewhere, and in compiled graphs, this is the plain composition.
    """
    if x.dim() != 4 or weight1.dim() != 2 or x.shape[-1] != weight1.shape[1] or x.numel() == 0:
        raise ValueError(
            "x must be (B, H, W, C), none of them 0, and weight1 (M, C) with the same C, got "
            f"{tuple(x.shape)} and {tuple(weight1.shape)}"
        )
    wide = weight1.shape[0]
    checks.shape("weight2", weight2, (wide, 1, 3, 3))
    if weight3.dim() != 2 or weight3.shape[1] != wide:
        raise ValueError(f"weight3 must be (O, M) with M = {wide} as in weight1, got {tuple(weight3.shape)}")
    for name, bias, size in (("bias1", bias1, wide), ("bias2", bias2, wide), ("bias3", bias3, weight3.shape[0])):
        checks.shape(name, bias, (size,))
    checks.same_device(x=x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2, weight3=weight3, bias3=bias3)
    tensors = (x, weight1, bias1, weight2, bias2, weight3, bias3)
    if x.device.type != "cpu" or not autocasts(x):
        return _bottleneck(*tensors)
    dtype = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        return _bottleneck(*(t if t.dtype is torch.float64 else t.to(dtype) for t in tensors))
