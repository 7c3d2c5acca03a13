"""Structure-aware state fusion: every state becomes a weighted sum of its neighbours in the plane.

    f[c, y, x] = sum_i alpha_i sum_{u, v} K_i[c, u, v] h[c, y + u d_i, x + v d_i]

with coordinates clamped to the map (the border repeats). Spatial-Mamba (arXiv 2410.15091), section 4.1: u and v in
-1..1, dilations d = 1, 3, 5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vssm.ops import checks
from vssm.ops.operator import Operator
from vssm.ops.state_fusion import core, portable, reference
from vssm.ops.state_fusion.fold import fold_kernels as _fold
from vssm.ops.state_fusion.fold import reaching
from vssm.ops.tensors import MAP, at_least_float32, to

__all__ = ["fold_kernels", "state_fusion", "state_fusion_readout"]


def _plain(h: Tensor, kernels: Tensor, alphas: Tensor, dilations: list[int]) -> Tensor:
    """One convolution per kernel, over the map padded with its own border; kernels (n, C, 1, k, k)."""
    fused, half = None, kernels.shape[-1] // 2
    for i, dilation in enumerate(reaching(h, dilations)):
        padded = F.pad(h, (half * dilation,) * 4, mode="replicate")
        part = F.conv2d(padded, alphas[i] * kernels[i], dilation=dilation, groups=h.shape[1])
        fused = part if fused is None else fused + part
    assert fused is not None
    return fused


def _plain_readout(h, kernels, alphas, C, u, D, dilations) -> Tensor:
    y = C * _plain(h, kernels, alphas, dilations)
    return y if D is None or u is None else torch.addcmul(y, D[:, None, None], u)


def _reference_readout(h, kernels, alphas, C, u, D, dilations) -> Tensor:
    return reference.readout(reference.state_fusion(h, kernels, alphas, dilations), C, u, D)


def _macs(h, kernels, *_) -> dict[str, int]:
    """One per tap of each kernel and element, as the papers count the training form; the readout counts nothing."""
    return {"conv": torch.Size(h).numel() * kernels[0] * kernels[-1] ** 2}


def _limit(h: Tensor, kernels: Tensor, *_) -> str | None:
    size = kernels.shape[-1]
    return None if size == 3 else f"it fuses with 3x3 kernels, these are {size}x{size}"


FUSION = Operator(
    "state_fusion(Tensor h, Tensor kernels, Tensor alphas, int[] dilations) -> Tensor",
    shape=lambda h, *_: h.shape,
    reference=reference.state_fusion,
    portable=portable.state_fusion,
    plain=_plain,
    core=core,
    triton="vssm.ops.state_fusion.triton",
    result="first",
    order=MAP,
    gradient_orders={"h": MAP},
    macs=_macs,
    limit=_limit,
    inlines="export",
)
READOUT = Operator(
    "state_fusion_readout(Tensor h, Tensor kernels, Tensor alphas, Tensor C, Tensor? u, Tensor? D, int[] dilations)"
    " -> Tensor",
    shape=lambda h, *_: h.shape,
    reference=_reference_readout,
    portable=portable.readout,
    plain=_plain_readout,
    core=core,
    triton="vssm.ops.state_fusion.triton",
    prefix="readout_",
    result="at least float32",
    order=MAP,
    gradient_orders={"h": MAP, "u": MAP},
    macs=_macs,
    backward_macs=3,  # the fusion once more, for dC
    limit=_limit,
    inlines="export",
)


def state_fusion(
    h: Tensor,
    kernels: list[Tensor],
    alphas: Tensor,
    dilations: list[int] = (1, 3, 5),  # pyright: ignore[reportArgumentType] (TorchScript knows lists only)
) -> Tensor:
    """Fuse a map of states with n dilated depthwise kernels.

    Args:
        h: (B, C, H, W), any strides and any H and W, also smaller than a dilation; float32, float64, bfloat16, float16.
        kernels: n tensors (C, 1, k, k) of one odd k, any supported dtype. 3x3 has kernels of its own in the compiled
            core and in Triton, other sizes run torch's convolutions.
        alphas: (n,), one weight per kernel.
        dilations: n positive integers. None at all means no fusion: h is returned as it is.

    Returns:
        Like h, dtype of h, in channels_last memory. Arithmetic is in at least float32.

    Raises:
        ValueError: a shape, dtype, device or dilation that does not fit; the message names the argument.

    Cost as the paper counts it: k^2 n B C H W multiply-adds.
    """
    if torch.jit.is_scripting():
        if len(dilations) == 0:
            return h
        return torch.ops.vssm.state_fusion(h, torch.stack(kernels), alphas, dilations, "")
    else:
        kernels, dilations = list(kernels), list(dilations)
        _check(h, kernels, alphas, dilations)
        return FUSION(h, torch.stack(kernels), alphas, dilations) if dilations else h


def state_fusion_readout(
    h: Tensor,
    kernels: list[Tensor],
    alphas: Tensor,
    C: Tensor,
    u: Tensor | None = None,
    D: Tensor | None = None,
    dilations: list[int] = (1, 3, 5),  # pyright: ignore[reportArgumentType]
) -> Tensor:
    """y = C * state_fusion(h) + D * u in one pass: what Spatial-Mamba's mixer reads out of its states.

    Args:
        h, kernels, alphas, dilations: as in `state_fusion`.
        C: (B, 1, H, W), one number per pixel.
        u, D: the map that entered the scan, like h in shape, and its weight per channel (C,); both or neither.

    Returns:
        (B, C, H, W) in the widest dtype of the inputs, at least float32; channels_last memory.

    Raises:
        ValueError: as `state_fusion`, or a readout that does not fit.

    The backward computes the fusion once more rather than keeping it.
    """
    kernels, dilations = list(kernels), list(dilations)
    _check(h, kernels, alphas, dilations)
    _check_readout(h, C, u, D)
    if dilations:
        return READOUT(h, torch.stack(kernels), alphas, C, u, D, dilations)
    return reference.readout(*to(at_least_float32(h, C, u, D), h, C, u, D))


def fold_kernels(
    kernels: list[Tensor],
    alphas: Tensor,
    dilations: list[int] = (1, 3, 5),  # pyright: ignore[reportArgumentType]
) -> Tensor:
    """Fold the kernels of `state_fusion` into one: (C, 1, S, S) with S = 1 + (k - 1) max(dilations); differentiable.

    Arguments and errors as in `state_fusion`, with at least one dilation.
    """
    kernels, dilations = list(kernels), list(dilations)
    check_kernels(kernels, alphas, dilations)
    if not dilations:
        raise ValueError("fold_kernels needs at least one kernel, got none; without kernels there is no fusion")
    return _fold(kernels, alphas, dilations)


def _check(h: Tensor, kernels: list[Tensor], alphas: Tensor, dilations: list[int]) -> None:
    if h.dim() != 4:
        raise ValueError(f"h must be (B, C, H, W), got {tuple(h.shape)}; a state dim of 1 goes with .squeeze(...)")
    checks.not_empty(h, "h")
    check_kernels(kernels, alphas, dilations, h.shape[1], h=h)


def check_kernels(
    kernels: list[Tensor], alphas: Tensor, dilations: list[int], channels: int | None = None, **others: Tensor
) -> None:
    """The weights of a fusion of so many channels, and that they are on the device of `others`."""
    if len(kernels) != len(dilations):
        raise ValueError(
            f"{len(kernels)} kernels for {len(dilations)} dilations {dilations}; give one kernel per dilation"
        )
    for dilation in dilations:
        if dilation < 1:
            raise ValueError(f"dilations must be positive, got {dilations}")
    size = kernels[0].shape[-1] if kernels and kernels[0].dim() == 4 else 3
    if size % 2 == 0:
        raise ValueError(f"kernels must have an odd size, as they have a centre, got {tuple(kernels[0].shape)}")
    for i, kernel in enumerate(kernels):
        if channels is None:
            channels = kernel.shape[0]
        if tuple(kernel.shape) != (channels, 1, size, size):
            raise ValueError(
                f"kernels[{i}] must be ({channels}, 1, {size}, {size}) as h has {channels} channels, got "
                f"{tuple(kernel.shape)}"
            )
    checks.shape("alphas", alphas, (len(dilations),), ", one per dilation")
    tensors = {**others, "alphas": alphas, **{f"kernels[{i}]": kernel for i, kernel in enumerate(kernels)}}
    checks.floating(**tensors)
    checks.same_device(**tensors)


def _check_readout(h: Tensor, C: Tensor, u: Tensor | None, D: Tensor | None) -> None:
    checks.shape("C", C, (h.shape[0], 1, *h.shape[2:]), ", one element per pixel", h=h)
    if (u is None) != (D is None):
        raise ValueError(f"u and D belong together, got only {'D' if u is None else 'u'}; give both or neither")
    checks.same_shape("u", u, h=h)
    checks.per_channel("D", D, h.shape[1])
    checks.floating(C=C, u=u, D=D)
    checks.same_device(h=h, C=C, u=u, D=D)
