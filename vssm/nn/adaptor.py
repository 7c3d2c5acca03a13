"""Mamba-Adaptor (arXiv 2505.12685): modules on the states of an SSM, and on its output.

The paper has no public code. What it leaves open is chosen here and listed in docs/differences.md.
"""

# Tensor.unflatten has no annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vssm.nn.choices import check_choice
from vssm.ops import state_fusion, state_gather

__all__ = ["SELECTIONS", "AdaptorS", "AdaptorT", "ring_of_offsets"]

SELECTIONS = ("learned", "static")


class AdaptorT(nn.Module):
    """Adaptor-T: every state is combined with K others at learned offsets, h + gain * sum_k c_k h(p + o_k).

    An `adaptor_t`: h (B, S, C, N, H, W) -> the same, for the S sequences of a scan on the image grid. Offsets o_k and
    coefficients c_k (a softmax over k) of each sequence are linear in its state, averaged over N. Initially the
    offsets are a ring, point k at distance k, the coefficients equal and the gain, one per channel, 0: the identity.

    Args:
        dim: channels C of the mixer.
        sequences: S.
        points: K.
        selection: "learned", or "static": the ring and the mean, nothing predicted.
        gain: its initial value. 1 is the paper's sum, for a network that is trained from scratch.

    Raises ValueError for a map of fewer pixels than points.
    """

    def __init__(self, dim: int, sequences: int = 1, points: int = 4, selection: str = "learned", gain: float = 0.0):
        super().__init__()
        check_choice("selection", selection, SELECTIONS)
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        self.points, self.selection = points, selection
        self.gain = nn.Parameter(torch.full((sequences, dim), float(gain)))
        learned = selection == "learned"
        self.weight = nn.Parameter(torch.zeros(sequences, 3 * points, dim)) if learned else None
        ring = torch.cat([ring_of_offsets(points).flatten(), torch.zeros(points)]).expand(sequences, -1).clone()
        self.bias: Tensor | nn.Parameter
        if learned:
            self.bias = nn.Parameter(ring)
        else:
            self.register_buffer("bias", ring)

    def forward(self, h: Tensor) -> Tensor:
        offsets, weights = self.select(h)
        return self.combine(h, offsets, weights)

    def select(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The K points that states h combine with: offsets (B, S, K, 2, H, W) in pixels, weights (B, S, K, H, W)."""
        sequences, height, width = h.shape[1], h.shape[4], h.shape[5]
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            fits = height * width >= self.points
        else:  # an export with free sizes cannot branch on them
            fits = torch.compiler.is_exporting() or height * width >= self.points
        if not fits:
            raise ValueError(
                f"an adaptor selects {self.points} states, and the map has only {height} x {width}; give larger "
                "images, or build the adaptors with fewer points"
            )
        predicted = self.bias.to(h.dtype)[:, :, None]
        if self.weight is not None:
            state = (h.squeeze(3) if h.shape[3] == 1 else h.mean(3)).flatten(3)  # (B, S, C, H*W)
            predicted = torch.matmul(self.weight.to(h.dtype), state) + predicted
        predicted = predicted.expand(h.shape[0], sequences, 3 * self.points, height * width)
        predicted = predicted.unflatten(3, [height, width])
        offsets = predicted[:, :, : 2 * self.points].unflatten(2, [self.points, 2])
        return offsets, predicted[:, :, 2 * self.points :].softmax(2)

    def combine(self, h: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """h + gain * the states at these offsets, weighted."""
        gain = self.gain.to(h.dtype)[None, :, :, None, None, None]
        return torch.addcmul(h, gain, state_gather(h, offsets, weights))

    def extra_repr(self) -> str:
        return f"points={self.points}, selection={self.selection}"


def ring_of_offsets(points: int) -> Tensor:
    """(points, 2) offsets in rows and columns: directions evenly around, point k at distance k + 1 along the larger
    axis."""
    angles = torch.arange(points) * (2 * math.pi / points)
    directions = torch.stack([angles.sin(), angles.cos()], 1)
    directions = directions / directions.abs().amax(1, keepdim=True)
    return directions * torch.arange(1, points + 1)[:, None]


class AdaptorS(nn.Module):
    """Adaptor-S: y + sum_i K_i * y, depthwise 3x3 kernels of several dilations, replicate border.

    An `adaptor_s`: y (B, C, H, W) -> the same, on the merged output of the scan; u (B, C, H, W) is what
    the scan took as its input. The kernels start at 0: the identity.

    Args:
        dim: channels C.
        dilations: one kernel for each.
        parallel: convolve u in place of y.
    """

    def __init__(self, dim: int, dilations: Sequence[int] = (1, 3, 5), parallel: bool = False):
        super().__init__()
        if len(dilations) == 0 or any(d < 1 for d in dilations):
            raise ValueError(f"dilations must be positive and at least one, got {tuple(dilations)}")
        self.dilations, self.parallel = list(dilations), parallel
        self.kernels = nn.ParameterList(nn.Parameter(torch.zeros(dim, 1, 3, 3)) for _ in dilations)
        self.register_buffer("ones", torch.ones(len(dilations)), persistent=False)
        self.ones: Tensor

    def forward(self, y: Tensor, u: Tensor) -> Tensor:
        kernels: list[Tensor] = []
        for kernel in self.kernels:
            kernels.append(kernel)
        read = u.to(y.dtype) if self.parallel else y
        return y + state_fusion(read, kernels, self.ones, self.dilations)

    def extra_repr(self) -> str:
        return f"dilations={tuple(self.dilations)}" + (", parallel" if self.parallel else "")
