"""The rules of relevance, one for each kind of layer, as a forward that autograd differentiates differently.

A rule computes what the layer computes, and holds (detaches) whatever the layer chooses by its input: standard
deviations, the slopes f(x) / x of activations, the steps and projections of a scan, softmaxes and offsets. What remains
is linear in the input and in the constants, so that gradient times input conserves relevance (MambaLRP, Jafari et al.
2024, arXiv 2406.07592, section 4). Constants (biases, embeddings, what batch norm subtracts) are leaves that a
`Constants` collects.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, SelectAdaptivePool2d, adaptive_avgmax_pool
from torch import Tensor, nn

from vssm.models import MambaAdaptor, SpatialMamba, Vim, VMamba
from vssm.models.hierarchy import Stage
from vssm.models.spatial_mamba import SpatialMambaBlock
from vssm.models.vim import PatchEmbed, VimBlock, place_tokens
from vssm.models.vmamba import VMambaBlock
from vssm.nn import (
    SS2D,
    AdaptorS,
    AdaptorT,
    BidirectionalMamba,
    BottleneckDownsample,
    Conv2d,
    ConvDownsample,
    ConvStem,
    DeformableFusion,
    DepthwiseConv3x3,
    DynamicFusion,
    LayerNorm,
    LocalAttentionFusion,
    Mlp,
    PatchMerging,
    PatchStem,
    PositionEmbedding,
    ResidualStem,
    RMSNorm,
    StateFusion,
)
from vssm.nn.bimamba import CausalConv1d, MambaBranch
from vssm.nn.head import TokenHead
from vssm.nn.precision import FullPrecision
from vssm.nn.ssm import SSM
from vssm.ops import causal_conv1d, depthwise_conv3x3, selective_scan, ss2d_readout
from vssm.ops.discretization import evaluate_zoh
from vssm.ops.routes import encode
from vssm.ops.ss2d import STATES, project, reference, zero_order_hold

__all__ = ["Constants", "by_rules", "gelu", "product", "silu"]

Forward = Callable[..., Tensor]


class Constants:
    """The constants that a network adds in one forward, as leaves of its graph."""

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []

    def __call__(self, value: Tensor) -> Tensor:
        """The value as a new leaf."""
        leaf = value.detach().requires_grad_(True)
        self.leaves.append(leaf)
        return leaf

    def plus(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x + bias, along the last dim."""
        return x if bias is None else x + self(bias)


Rule = Callable[..., Forward]  # (module, constants) -> what stands in for module.forward


# ---- functions ----


def silu(x: Tensor) -> Tensor:
    """x times the held quotient silu(x) / x = sigmoid(x): section 4.1 of the paper."""
    return x * torch.sigmoid(x).detach()


def gelu(x: Tensor) -> Tensor:
    """x times the held quotient gelu(x) / x, the normal distribution function of x."""
    return x * (0.5 * (1 + torch.erf(x * math.sqrt(0.5)))).detach()


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b, each factor with half of the relevance: section 4.3 of the paper."""
    return 0.5 * (a * b.detach() + a.detach() * b)


# F.relu is its own rule: its derivative is relu(x) / x.
_ACTIVATIONS: dict[str, Forward] = {"silu": silu, "gelu": gelu, "relu": F.relu}


def _standardise(x: Tensor, eps: float, dims: int = 1) -> Tensor:
    """(x - mean) / deviation over the last dims, the deviation held."""
    over = tuple(range(-dims, 0))
    deviation = torch.sqrt(x.var(over, unbiased=False, keepdim=True) + eps).detach()
    return (x - x.mean(over, keepdim=True)) / deviation


# ---- layers ----


def _linear(module: nn.Linear, constants: Constants) -> Forward:
    return lambda x: constants.plus(F.linear(x, module.weight), module.bias)


def _conv2d(module: nn.Conv2d, constants: Constants) -> Forward:
    def forward(x: Tensor) -> Tensor:
        bias = None if module.bias is None else constants(module.bias)
        return module._conv_forward(x, module.weight, bias)

    return forward


def _conv2d_nhwc(module: Conv2d, constants: Constants) -> Forward:
    forward = _conv2d(module, constants)
    return lambda x: forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _depthwise(module: DepthwiseConv3x3, constants: Constants) -> Forward:
    def forward(x: Tensor) -> Tensor:
        y = depthwise_conv3x3(x.permute(0, 3, 1, 2), module.weight).permute(0, 2, 3, 1)
        y = constants.plus(y, module.bias)
        y = silu(y) if module.act == "silu" else y
        return x + y if module.residual else y

    return forward


def _causal_conv(module: CausalConv1d, constants: Constants) -> Forward:
    def forward(x: Tensor) -> Tensor:
        y = causal_conv1d(x.flatten(1, 2).transpose(1, 2), module.weight.squeeze(1), reverse=module.reverse)
        return silu(constants.plus(y.transpose(1, 2).view(x.shape), module.bias))

    return forward


def _layer_norm(module: nn.LayerNorm, constants: Constants) -> Forward:
    def forward(x: Tensor) -> Tensor:
        y = _standardise(x, module.eps, len(module.normalized_shape))
        y = y if module.weight is None else y * module.weight
        return constants.plus(y, module.bias)

    return forward


def _rms_norm(module: RMSNorm, constants: Constants) -> Forward:
    def forward(x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.eps).detach()
        return (x * scale * module.weight).to(module.weight.dtype)

    return forward


def _batch_norm(module: nn.BatchNorm2d, constants: Constants) -> Forward:
    """x scale + (bias - mean scale): affine, and the parenthesis is one constant."""
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise ValueError(
            "a BatchNorm2d without running statistics norms by the batch, which has no rule of relevance; build it "
            "with track_running_stats=True"
        )

    def forward(x: Tensor) -> Tensor:
        scale = torch.rsqrt(variance + module.eps)
        scale = scale if module.weight is None else scale * module.weight
        shift = -mean * scale if module.bias is None else module.bias - mean * scale
        return x * scale[:, None, None] + constants(shift)[:, None, None]

    return forward


def _mlp(module: Mlp, constants: Constants) -> Forward:
    def forward(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = module.fc2(gelu(module.fc1(x)))
        return y if residual is None else residual + y

    return forward


def _conv_stem(module: ConvStem, constants: Constants) -> Forward:
    def forward(x: Tensor) -> Tensor:
        x = gelu(module.norm1(module.conv1(x.permute(0, 2, 3, 1))))
        return module.norm2(module.conv2(x))

    return forward


def _position_embedding(module: PositionEmbedding, constants: Constants) -> Forward:
    return lambda x: x + constants(module.weight).permute(0, 2, 3, 1)


# ---- scans ----


def _ss2d(module: SS2D, constants: Constants) -> Forward:
    def forward(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y, z = module.in_proj(x), None
        if module.gate != "none":
            y, z = y[..., : module.inner_dim], y[..., module.inner_dim :]
        u = y if module.conv is None else module.conv(y)
        act = _ACTIVATIONS[module.act]
        u = u if module.conv_acts else act(u)
        y = module.out_norm(_scan(module, u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        if z is not None:
            y = product(y, act(z) if module.gate == "act" else z)
        y = module.out_proj(y.to(u.dtype))
        return y if residual is None else residual + y

    return forward


def _mamba_branch(module: MambaBranch, constants: Constants) -> Forward:
    return lambda x: _scan(module, module.conv(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _bidirectional(module: BidirectionalMamba, constants: Constants) -> Forward:
    def forward(x: Tensor, residual: Tensor | None = None) -> Tensor:
        u, z = module.in_proj(x).split(module.inner_dim, -1)
        y = module.forward_branch(u) + module.backward_branch(u)
        if module.adaptor_s is not None:
            y = module.adaptor_s(y.permute(0, 3, 1, 2), u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = module.out_proj(product(y, 0.5 * silu(z.to(y.dtype))).to(u.dtype))
        return y if residual is None else residual + y

    return forward


def _scan(ssm: SSM, u: Tensor) -> Tensor:
    """The scan of u (B, E, H, W), linear in it: dt, B, C and A are held (section 4.2 of the paper)."""
    A = -torch.exp(ssm.A_log)
    if ssm.cascade:
        y = _half_cascade(ssm, u, A, 0).transpose(2, 3)
        y = _half_cascade(ssm, y, A, 2).transpose(2, 3)
    else:
        proj = project(u, ssm.x_proj_weight).detach()
        args = (u, proj, ssm.dt_proj_weight, ssm.dt_proj_bias, A, encode(ssm.routes))
        h = evaluate_zoh(STATES, zero_order_hold.states, args) if ssm.zoh else STATES(*args)
        for module in (ssm.state_fn, ssm.adaptor_t):
            h = h if module is None else module(h)
        _, _, C = reference.split_projection(proj, ssm.dt_rank, ssm.d_state)
        y = ss2d_readout(h, C, u, ssm.D)
    return y if ssm.adaptor_s is None else ssm.adaptor_s(y, u)


def _half_cascade(ssm: SSM, x: Tensor, A: Tensor, first: int) -> Tensor:
    """Every row of x (B, E, H, W), normed, in both directions: groups `first` and `first + 1` of `ss2d_cascade`."""
    batch, channels, height, width = x.shape
    groups, rows = slice(first, first + 2), slice(first * channels, (first + 2) * channels)
    lines = _standardise(x.permute(0, 2, 3, 1), eps=1e-5).flatten(0, 1).transpose(1, 2)  # (B*H, E, W)
    u = torch.stack([lines, lines.flip(-1)], 1)
    proj = torch.einsum("mkew,kre->mkrw", u, ssm.x_proj_weight[groups]).detach()
    low, B, C = proj.split([ssm.dt_rank, ssm.d_state, ssm.d_state], 2)
    dt = torch.einsum("mkrw,ker->mkew", low, ssm.dt_proj_weight[groups])
    bias = ssm.dt_proj_bias[groups].flatten()
    scanned = (u.flatten(1, 2), dt.flatten(1, 2), A[rows], B, C, ssm.D[rows], bias, True)
    y = selective_scan(*scanned, discretization=ssm.discretization)
    assert isinstance(y, Tensor)
    return y.unflatten(1, (2, channels)).sum(1).view(batch, height, channels, width).transpose(1, 2)


def _chosen_by_states(module: FullPrecision, constants: Constants) -> Forward:
    """What the states choose (kernels, offsets, attention) is held; what is weighed is theirs."""
    return lambda h: type(module).forward(module, h.detach(), h)


def _adaptor_t(module: AdaptorT, constants: Constants) -> Forward:
    return lambda h: module.combine(h, *module.select(h.detach()))


# ---- networks ----


def _vim(module: Vim, constants: Constants) -> Forward:
    def forward(x: Tensor) -> Tensor:
        token = None if module.cls_token is None else constants(module.cls_token)
        x = place_tokens(module.patch_embed(x), constants(module.pos_embed), token, module.grid)
        return module.forward_head(module.norm(module.blocks(x)).flatten(1, 2))

    return forward


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    Conv2d: _conv2d_nhwc,
    DepthwiseConv3x3: _depthwise,
    CausalConv1d: _causal_conv,
    nn.LayerNorm: _layer_norm,
    LayerNorm: _layer_norm,
    RMSNorm: _rms_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.SiLU: lambda module, constants: silu,
    nn.GELU: lambda module, constants: gelu,
    Mlp: _mlp,
    ConvStem: _conv_stem,
    PositionEmbedding: _position_embedding,
    SS2D: _ss2d,
    MambaBranch: _mamba_branch,
    BidirectionalMamba: _bidirectional,
    AdaptorT: _adaptor_t,
    Vim: _vim,
}

# Their layers inside only choose, so they need no rules.
_CHOOSING: dict[type[nn.Module], Rule] = dict.fromkeys(
    (DynamicFusion, DeformableFusion, LocalAttentionFusion), _chosen_by_states
)

# Compositions of other modules, and layers that are linear without constants, at least piece by piece (ReLU, max).
_AS_THEY_ARE: set[type[nn.Module]] = {
    VMamba,
    SpatialMamba,
    MambaAdaptor,
    Stage,
    VMambaBlock,
    SpatialMambaBlock,
    VimBlock,
    PatchStem,
    ResidualStem,
    PatchEmbed,
    PatchMerging,
    ConvDownsample,
    BottleneckDownsample,
    StateFusion,
    AdaptorS,
    TokenHead,
    ClassifierHead,
    SelectAdaptivePool2d,
    adaptive_avgmax_pool.FastAdaptiveAvgPool,
    adaptive_avgmax_pool.FastAdaptiveMaxPool,
    adaptive_avgmax_pool.FastAdaptiveAvgMaxPool,
    adaptive_avgmax_pool.FastAdaptiveCatAvgMaxPool,
    DropPath,
    nn.Dropout,
    nn.Sequential,
    nn.ModuleList,
    nn.ParameterList,
    nn.Identity,
    nn.Flatten,
    nn.ReLU,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
}


@contextmanager
def by_rules(model: nn.Module, constants: Constants) -> Iterator[None]:
    """While this lasts, `model` computes by the rules, and its weights get no gradients. Then it is as it was.

    Raises ValueError for a module without a rule, before anything is changed.
    """
    found = list(_find_rules(model, "", set()))
    stand_ins = [(module, rule(module, constants)) for module, rule in found]
    # Recomputed activations would make every constant twice.
    recomputing = [m for m in model.modules() if getattr(m, "grad_checkpointing", False) is True]
    weights = [p for p in model.parameters() if p.requires_grad]
    try:
        for module in recomputing:
            setattr(module, "grad_checkpointing", False)  # noqa: B010
        for p in weights:
            p.requires_grad_(False)
        for module, forward in stand_ins:
            module.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for module, _ in stand_ins:
            vars(module).pop("forward", None)
        for p in weights:
            p.requires_grad_(True)
        for module in recomputing:
            setattr(module, "grad_checkpointing", True)  # noqa: B010


def _find_rules(module: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[nn.Module, Rule]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    kind = type(module)
    if "forward" in vars(module):
        raise _no_rule(name, f"{kind.__name__} with a forward of its own")
    if kind in _CHOOSING:
        yield module, _CHOOSING[kind]
        return
    if kind in _RULES and not (kind is nn.GELU and module.approximate != "none"):
        yield module, _RULES[kind]
    elif kind not in _AS_THEY_ARE:
        raise _no_rule(name, kind.__name__)
    for child, inner in module.named_children():
        yield from _find_rules(inner, f"{name}.{child}" if name else child, seen)


def _no_rule(name: str, what: str) -> ValueError:
    return ValueError(
        f"{name or 'the model'} is a {what}, for which there is no rule of relevance; take a VMamba, Spatial-Mamba, "
        "Vim or Mamba-Adaptor of this package's own layers. Grad-CAM needs no rules: vssm.analysis.cam_target"
    )
