"""Initial values of linear layers and of the parameters of an SSM.

The three SSM initialisations are those of VMamba's table 11. They hold for every route independently.
"""

# torch annotates the bias of nn.Linear as never None; without one it is.
# pyright: reportUnnecessaryComparison=false

import math

import torch
from timm.layers import trunc_normal_  # pyright: ignore[reportPrivateImportUsage, reportUnknownVariableType]
from torch import Tensor, nn

from vssm.nn.choices import check_choice

__all__ = ["SSM_INITS", "init_linear", "init_ssm"]

SSM_INITS = ("mamba", "rand", "zero")

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


def init_linear(module: nn.Module) -> None:
    """Normal weights with std 0.02 and zero bias, if `module` is a linear layer; meant for `Module.apply`."""
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def init_ssm(x_proj_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor, init: str) -> None:
    """Fill the parameters of an SSM in place.

    Args:
        x_proj_weight: (K, R+2N, C), uniform within 1/sqrt(C) in every case.
        dt_weight, dt_bias: (K, C, R) and (K, C).
        A_log: (K*C, N).
        D: (K*C,), 1 in every case.
        init: "mamba" (softplus(dt_bias) log-uniform in [0.001, 0.1], dt_weight uniform within R^-1/2, A = -1..-N),
            "rand" (A_log normal, dt normal/10) or "zero" (A_log 0, dt uniform [0, 1)/10).
    """
    check_choice("init", init, SSM_INITS)
    if A_log.is_meta:  # nothing to fill, and torch takes milliseconds for every operation on such tensors
        return
    bound = x_proj_weight.shape[-1] ** -0.5
    x_proj_weight.uniform_(-bound, bound)
    D.fill_(1.0)
    if init == "mamba":
        bound = dt_weight.shape[-1] ** -0.5
        dt_weight.uniform_(-bound, bound)
        dt = dt_bias.uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp_().clamp_(min=DT_FLOOR)
        dt.add_(torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        A_log.copy_(torch.arange(1, A_log.shape[1] + 1, dtype=A_log.dtype, device=A_log.device).log())
    elif init == "rand":
        A_log.normal_()
        dt_weight.normal_(std=0.1)
        dt_bias.normal_(std=0.1)
    else:
        A_log.zero_()
        dt_weight.uniform_(0, 0.1)
        dt_bias.uniform_(0, 0.1)
