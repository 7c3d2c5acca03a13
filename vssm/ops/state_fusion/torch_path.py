"""State fusion with torch's own convolutions: over the map padded with its own border, one per kernel, or folded."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops.state_fusion.fold import fold_kernels, unfold_gradient

_aten = torch.ops.aten


def _padded(h: Tensor, reach: int) -> Tensor:
    return F.pad(h, (reach, reach, reach, reach), mode="replicate")


def forward(h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int], form: str) -> Tensor:
    """See the public function. Inputs in the compute dtype, kernels (n, C, 1, k, k), n >= 1; channels_last memory."""
    C, half = h.shape[1], kernels.shape[-1] // 2
    with torch.autocast(h.device.type, enabled=False):
        if form == "folded":
            fused = F.conv2d(_padded(h, half * max(dilations)), fold_kernels(kernels, alphas, dilations), groups=C)
        else:
            fused = F.conv2d(_padded(h, half * dilations[0]), alphas[0] * kernels[0], dilation=dilations[0], groups=C)
            for i in range(1, len(dilations)):
                d = dilations[i]
                fused = fused + F.conv2d(_padded(h, half * d), alphas[i] * kernels[i], dilation=d, groups=C)
    return fused.contiguous(memory_format=torch.channels_last)


def _convolution_backward(g: Tensor, h: Tensor, weight: Tensor, reach: int, dilation: int) -> tuple[Tensor, Tensor]:
    C = h.shape[1]
    dpadded, dweight, _ = _aten.convolution_backward(
        g, _padded(h, reach), weight, None, [1, 1], [0, 0], [dilation] * 2, False, [0, 0], C, [True, True, False]
    )
    return _aten.replication_pad2d_backward(dpadded, h, [reach] * 4), dweight


def backward(
    g: Tensor, h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int], form: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dh (channels_last memory), dkernels, dalphas."""
    half = kernels.shape[-1] // 2
    if form == "folded":
        reach = half * max(dilations)
        dh, dfolded = _convolution_backward(g, h, fold_kernels(kernels, alphas, dilations), reach, 1)
        dkernels, dalphas = unfold_gradient(dfolded, kernels, alphas, dilations)
    else:
        dh, parts = torch.zeros_like(h), []
        for i, d in enumerate(dilations):
            dpart, dweight = _convolution_backward(g, h, alphas[i] * kernels[i], half * d, d)
            dh = dh + dpart
            parts.append(dweight)
        dweights = torch.stack(parts)
        dkernels, dalphas = alphas[:, None, None, None, None] * dweights, (kernels * dweights).flatten(1).sum(1)
    return dh.contiguous(memory_format=torch.channels_last), dkernels, dalphas


def readout_forward(
    h: Tensor, kernels: Tensor, alphas: Tensor, C: Tensor, u: Tensor | None, D: Tensor | None, dilations: list[int]
) -> Tensor:
    """C * fused + D * u; all inputs in the compute dtype."""
    y = C * forward(h, kernels, alphas, dilations, "taps")
    return y if D is None or u is None else torch.addcmul(y, D[:, None, None], u)


def readout_backward(
    g: Tensor,
    h: Tensor,
    kernels: Tensor,
    alphas: Tensor,
    C: Tensor,
    u: Tensor | None,
    D: Tensor | None,
    dilations: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dh, dkernels, dalphas, dC, du, dD."""
    dC = (g * forward(h, kernels, alphas, dilations, "taps")).sum(1, keepdim=True)
    dh, dkernels, dalphas = backward(g * C, h, kernels, alphas, dilations, "taps")
    if D is None or u is None:
        return dh, dkernels, dalphas, dC, None, None
    du = (g * D[:, None, None]).contiguous(memory_format=torch.channels_last)
    return dh, dkernels, dalphas, dC, du, (g * u).sum((0, 2, 3))
