"""Registration of `vssm::ss2d_fusion`: schema, shapes, FLOPs; no autograd formula, it runs without gradients only."""

import torch
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, library
from vssm.ops.pointwise import empty_map
from vssm.ops.scan_fusion import core
from vssm.ops.state_fusion.op import reaching

# Elsewhere the public function composes other operators, which have paths of their own.
dispatch.register("ss2d_fusion", core=None, torch=None, reference=None)


def _fusion(x, proj, dt_weight, dt_bias, A, D, kernels, alphas, dilations, path):
    return core.forward(x, proj, dt_weight, dt_bias, A, D, kernels, alphas, reaching(x, dilations))


def _fusion_fake(x, proj, dt_weight, dt_bias, A, D, kernels, alphas, dilations, path):
    return empty_map(x, library.at_least_float32(x, proj, dt_weight, dt_bias, A, D, alphas, *kernels))


library.define(
    "ss2d_fusion(Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D, Tensor[] kernels, "
    "Tensor alphas, int[] dilations, str path) -> Tensor",
    _fusion,
    _fusion_fake,
)


@register_flop_formula(torch.ops.vssm.ss2d_fusion)
def _formula(x, proj, dt_weight, dt_bias, A, D, kernels, *args, out_shape=None, **kwargs) -> int:
    # As ss2d_states and state_fusion_readout: dt projection, 7 per state, 9 per kernel, 2 for the readout.
    return 2 * torch.Size(x).numel() * (dt_weight[2] + 7 + 9 * len(kernels) + 2)
