"""torch's convolution: its weight brought into the map's layout by the core, or one matrix product where the weight
outweighs the map.

oneDNN brings a weight into its own order at every call. For the last downsampling of a network that costs more than
the convolution: 10 MB of weight for a map of 14 x 14. Unfolded patches times the weight as it lies need no reordering.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.linear import linear
from vssm.ops.linear.core import channels_last_weight
from vssm.ops.operator import autocasts, is_inference

__all__ = ["conv2d"]

# The product pays from this many weight elements per element of the map: VMamba-T's last downsampling has 9 at B=4,
# where it is taken, and 4 at B=8 (`python benchmarks/pointwise.py --part downsampling --batch 1 2 4 8`).
WEIGHT_PER_MAP = 8

dispatch.register("conv2d", core=None, torch=None, reference=None)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """`torch.nn.functional.conv2d` with one group: x (B, C, H, W), weight (C', C, k, k) -> (B, C', H', W').

    Differs from it only in inference on the CPU core, and there at most in the order of summation.
    """
    if torch.jit.is_scripting():
        return F.conv2d(x, weight, bias, stride, padding)
    else:
        path = dispatch.requested()
        plain = (
            not is_inference((x, weight, bias))
            or x.dtype != weight.dtype
            or path == "reference"
            or autocasts(x)
            or dispatch.choose("conv2d", x, path) != "core"
        )
        if plain:
            return F.conv2d(x, weight, bias, stride, padding)
        if weight.numel() >= WEIGHT_PER_MAP * x.numel():
            return _product(x, weight, bias, stride, padding)
        turns = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() and weight.is_contiguous()
        if turns and x.dtype == torch.float32 and _is_memory(weight):
            weight = channels_last_weight(weight)  # else torch would, by its general copy
        return F.conv2d(x, weight, bias, stride, padding)


def _is_memory(t: Tensor) -> bool:
    """Whether t is plain values in memory: no subclass of Tensor, no view whose sign is still to be changed."""
    return type(t) in (Tensor, torch.nn.Parameter) and not t.is_neg()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    batch, _, height, width = x.shape
    kernel_height, kernel_width = weight.shape[2:]
    patches = F.unfold(x.contiguous(), (kernel_height, kernel_width), padding=padding, stride=stride)
    # Sample by sample: patches are columns, and linear takes one matrix of columns as it is.
    y = torch.stack([linear(sample.t(), weight.flatten(1), bias) for sample in patches])  # (B, L, C')
    out_height = (height + 2 * padding - kernel_height) // stride + 1
    return y.unflatten(1, (out_height, -1)).permute(0, 3, 1, 2)
