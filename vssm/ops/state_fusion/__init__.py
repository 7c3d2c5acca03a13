"""Structure-aware state fusion: every state becomes a weighted sum of its neighbours in the plane.

    f[c, y, x] = sum_i alpha_i sum_{u, v} K_i[c, u, v] h[c, y + u d_i, x + v d_i]

with coordinates clamped to the map (the border repeats). Spatial-Mamba (arXiv 2410.15091), section 4.1: u and v in
-1..1, dilations d = 1, 3, 5.
"""

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.checks import floating, not_empty, same_device
from vssm.ops.library import at_least_float32
from vssm.ops.pointwise import call, check_per_channel, prefers_plain, to
from vssm.ops.state_fusion import op as _op  # noqa: F401  (registers the operators)
from vssm.ops.state_fusion import reference, torch_path
from vssm.ops.state_fusion.fold import fold_kernels as _fold

__all__ = ["fold_kernels", "state_fusion", "state_fusion_readout"]

FORMS = ("taps", "folded")


def state_fusion(
    h: Tensor,
    kernels: list[Tensor],
    alphas: Tensor,
    dilations: list[int] = (1, 3, 5),  # pyright: ignore[reportArgumentType] (TorchScript knows lists only)
    form: str = "taps",
) -> Tensor:
    """Fuse a map of states with n dilated depthwise kernels.

    Args:
        h: (B, C, H, W), any strides and any H and W, also smaller than a dilation; float32, float64, bfloat16, float16.
        kernels: n tensors (C, 1, k, k) of one odd k, any supported dtype. 3x3 has kernels of its own in the compiled
            core and in Triton, other sizes run torch's convolutions.
        alphas: (n,), one weight per kernel.
        dilations: n positive integers. None at all means no fusion: h is returned as it is.
        form: "taps", n convolutions, or "folded", one convolution with `fold_kernels`, folded anew in every call. The
            two agree to rounding; the compiled core has one kernel for both, which visits each distinct tap once.

    Returns:
        Like h, dtype of h, in channels_last memory. Arithmetic is in at least float32.

    Raises:
        ValueError: an unknown form, or a shape, dtype, device or dilation that does not fit; the argument is named.

    Cost as the paper counts it: k^2 n B C H W multiply-adds.
    """
    if torch.jit.is_scripting():
        if len(dilations) == 0:
            return h
        return torch.ops.vssm.state_fusion(h, torch.stack(kernels), alphas, dilations, form, "")
    else:
        kernels, dilations = list(kernels), list(dilations)
        _check(h, kernels, alphas, dilations, form)
        if not dilations:
            return h
        stacked = torch.stack(kernels)
        path = dispatch.requested()
        if path == "reference" or (prefers_plain(path) and torch.compiler.is_exporting()):
            wide_h, stacked, alphas = to(at_least_float32(h, stacked, alphas), h, stacked, alphas)
            if path == "reference":
                return reference.state_fusion(wide_h, stacked, alphas, dilations).to(h.dtype)
            return torch_path.forward(wide_h, stacked, alphas, dilations, form).to(h.dtype)
        return call(torch.ops.vssm.state_fusion.default, h, stacked, alphas, dilations, form, path)


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
    if torch.jit.is_scripting():
        if len(dilations) == 0:
            y = C * h
            return y if D is None or u is None else y + D[:, None, None] * u
        return torch.ops.vssm.state_fusion_readout(h, torch.stack(kernels), alphas, C, u, D, dilations, "")
    else:
        kernels, dilations = list(kernels), list(dilations)
        _check(h, kernels, alphas, dilations, "taps")
        _check_readout(h, C, u, D)
        path = dispatch.requested()
        if dilations and path != "reference" and not (prefers_plain(path) and torch.compiler.is_exporting()):
            stacked = torch.stack(kernels)
            return call(torch.ops.vssm.state_fusion_readout.default, h, stacked, alphas, C, u, D, dilations, path)
        dtype = at_least_float32(h, alphas, C, u, D, *kernels)
        fused = state_fusion(h.to(dtype), kernels, alphas, dilations)
        C, u, D = to(dtype, C, u, D)
        return reference.readout(fused, C, u, D)


def fold_kernels(
    kernels: list[Tensor],
    alphas: Tensor,
    dilations: list[int] = (1, 3, 5),  # pyright: ignore[reportArgumentType]
) -> Tensor:
    """Fold the kernels of `state_fusion` into one: (C, 1, S, S) with S = 1 + (k - 1) max(dilations); differentiable.

    Arguments and errors as in `state_fusion`, with at least one dilation.
    """
    kernels, dilations = list(kernels), list(dilations)
    _check_kernels(kernels, alphas, dilations)
    if not dilations:
        raise ValueError("fold_kernels needs at least one kernel, got none; without kernels there is no fusion")
    return _fold(kernels, alphas, dilations)


def _check(h: Tensor, kernels: list[Tensor], alphas: Tensor, dilations: list[int], form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: choose one of {', '.join(FORMS)}")
    if h.dim() != 4:
        raise ValueError(f"h must be (B, C, H, W), got {tuple(h.shape)}; a state dim of 1 goes with .squeeze(...)")
    not_empty(h, "h")
    _check_kernels(kernels, alphas, dilations, h.shape[1])
    named = {f"kernels[{i}]": kernel for i, kernel in enumerate(kernels)}
    floating(h=h, alphas=alphas, **named)
    same_device(h=h, alphas=alphas, **named)


def _check_kernels(kernels: list[Tensor], alphas: Tensor, dilations: list[int], channels: int | None = None) -> None:
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
    if tuple(alphas.shape) != (len(dilations),):
        raise ValueError(f"alphas must be ({len(dilations)},), one per dilation, got {tuple(alphas.shape)}")


def _check_readout(h: Tensor, C: Tensor, u: Tensor | None, D: Tensor | None) -> None:
    expected = (h.shape[0], 1, *h.shape[2:])
    if tuple(C.shape) != expected:
        raise ValueError(f"C must be {expected}, one number per pixel of h {tuple(h.shape)}, got {tuple(C.shape)}")
    if (u is None) != (D is None):
        raise ValueError(f"u and D belong together, got only {'D' if u is None else 'u'}; give both or neither")
    if u is not None and u.shape != h.shape:
        raise ValueError(f"u must have the shape of h, {tuple(h.shape)}, got {tuple(u.shape)}")
    check_per_channel("D", D, h.shape[1])
    floating(C=C, u=u, D=D)
    same_device(h=h, C=C, u=u, D=D)
