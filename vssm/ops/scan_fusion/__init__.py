"""Spatial-Mamba's mixer from its map to its readout: the scan, the fusion of its states, C and D.

    y = C * state_fusion(h) + D x,    h the states of `ss2d_states(x)`

arXiv 2410.15091, section 4.1. Composed of `ss2d_states` and `state_fusion_readout`, route by route; in inference on the
CPU core, for a raster route and one state, a single pass that writes neither the states nor their fusion to memory.
"""

import functools

import torch
from torch import Tensor

from vssm.ops import dispatch
from vssm.ops.operator import Operator
from vssm.ops.routes import RASTER, Route, encode
from vssm.ops.scan_fusion import core
from vssm.ops.ss2d import STATES, project, ss2d_readout, ss2d_states
from vssm.ops.ss2d.arguments import check
from vssm.ops.state_fusion import FUSION, READOUT, check_kernels, state_fusion, state_fusion_readout
from vssm.ops.tensors import MAP

__all__ = ["ss2d_fusion"]


def _plain(x, proj, dt_weight, dt_bias, A, D, kernels, alphas, dilations) -> Tensor:
    h = STATES(x, proj, dt_weight, dt_bias, A, encode(RASTER))
    C = proj[..., -1].unsqueeze(1)
    return READOUT(h.squeeze(3).squeeze(1), kernels, alphas, C, x, D, dilations)


def _macs(x, proj, dt_weight, dt_bias, A, D, kernels, *_) -> dict[str, int]:
    scan = STATES.macs(x, proj, dt_weight, dt_bias, A, None)
    return scan | FUSION.macs(x, kernels)


_fusion = Operator(
    "ss2d_fusion(Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D, Tensor kernels, "
    "Tensor alphas, int[] dilations) -> Tensor",
    shape=lambda x, *_: x.shape,
    reference=_plain,
    core=core,
    result="at least float32",
    order=MAP,
    macs=_macs,
    differentiable=False,
)


def ss2d_fusion(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    kernels: list[Tensor],
    alphas: Tensor,
    dilations: list[int] = (1, 3, 5),  # pyright: ignore[reportArgumentType]
    routes: tuple[Route, ...] = RASTER,
) -> Tensor:
    """Scan a map, fuse the states, read them out.

    Args:
        x, x_proj_weight, dt_weight, dt_bias, A, D, routes: as in `ss2d`.
        kernels, alphas, dilations: as in `state_fusion`, for K*C*N channels in the order (K, C, N).

    Returns:
        y (B, C, H, W) in at least float32, in channels_last memory.

    Raises:
        ValueError: shapes that do not fit, as `ss2d_states` and `state_fusion`.
    """
    kernels, dilations = list(kernels), list(dilations)
    check(x, x_proj_weight, dt_weight, dt_bias, A, D, routes)
    check_kernels(kernels, alphas, dilations, A.numel(), x=x)
    whole = (
        not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and not torch.compiler.is_exporting()
        and core.fits(dt_weight, A, kernels, routes)
        and dispatch.choose("ss2d_fusion", x, dispatch.requested()) == "core"
    )
    if whole:
        proj = project(x, x_proj_weight)
        return _fusion(x, proj, dt_weight, dt_bias, A, D, torch.stack(kernels), alphas, dilations)
    if len(routes) > 1 and A.shape[1] == 1:
        # One after the other: a route's states are read out while they are fused, and no map of all is ever made.
        rows = zip(A.chunk(len(routes)), D.chunk(len(routes)), *(kernel.chunk(len(routes)) for kernel in kernels))
        weights = zip(x_proj_weight.split(1), dt_weight.split(1), dt_bias.split(1))
        ys = [
            ss2d_fusion(x, *weight, A_k, D_k, kernels_k, alphas, dilations, (route,))
            for route, weight, (A_k, D_k, *kernels_k) in zip(routes, weights, rows, strict=True)
        ]
        return functools.reduce(torch.add, ys)
    h, C = ss2d_states(x, x_proj_weight, dt_weight, dt_bias, A, routes)
    if h.shape[1] == 1 and h.shape[3] == 1:
        # Squeezed, not indexed, whose backward fills a map with zeros, and not viewed: exporting with free H and W
        # would guard on what a view needs to know.
        return state_fusion_readout(h.squeeze(3).squeeze(1), kernels, alphas, C.squeeze(1), x, D, dilations)
    fused = state_fusion(h.flatten(1, 3), kernels, alphas, dilations)
    return ss2d_readout(fused.unflatten(1, h.shape[1:4]), C, x, D)
