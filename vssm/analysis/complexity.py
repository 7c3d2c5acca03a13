"""Parameters and multiply-adds of a model, counted as the papers count them.

The convention is fvcore's with the papers' own handler for the scan. One multiply-add is 1. Per operator:

    conv         output elements x kernel taps x input channels per group; the 27 taps of a state fusion count here,
                 in whichever form they are computed
    linear       every matrix product, projections of the SSM included
    scan         9 B L K E N + B L K E for VMamba's; 7 B L K E N when only the states are computed (Spatial-Mamba's)
    layer_norm   5 per element with weight and bias, 4 without
    rms_norm     4 per element with weight
    batch_norm   5 per element, as the authors measured (in training flags); 2 with batch_norm="eval"
    sampling     5 per element and place of a blending of states (bilinear: 4, its weight: 1); 4 per tap of a deformable
                 convolution, whose weights count as conv
    pool         1 per input element of an average over a map
    upsample     1 per output element (nearest), 4 (bilinear)

Activations, exp, additions, element-wise products and permutations count 0.

The model runs once on fake tensors, or as it is on the meta device: no memory is used, at any size. A detector, whose
work depends on what it finds, has a `forward_counted` for this: every layer, on 1000 proposals and 100 masks.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torchvision  # noqa: F401  (registers its operators)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vssm.ops
from vssm.ops.layer_norm import macs as layer_norm_macs
from vssm.ops.operator import OPERATORS

aten = torch.ops.aten

BATCH_NORM = {"train": 5, "eval": 2}


@dataclass(frozen=True)
class Complexity:
    """What `complexity` counted, for one image of `input_size`.

    params: trainable parameters. macs: multiply-adds in all. by_operator: the same total, split.
    """

    model: str
    input_size: tuple[int, int, int]
    params: int
    macs: int
    by_operator: dict[str, int]

    def __str__(self) -> str:
        size = " x ".join(map(str, self.input_size))
        lines = [f"{self.model}, {size}: {self.params / 1e6:.2f} M parameters, {self.macs / 1e9:.3f} G multiply-adds"]
        for name, macs in sorted(self.by_operator.items(), key=lambda item: -item[1]):
            lines.append(f"  {name:<12}{macs / 1e9:>12.6f} G{100 * macs / max(self.macs, 1):>8.2f} %")
        return "\n".join(lines)


def complexity(
    model: nn.Module, input_size: int | Sequence[int] | None = None, batch_norm: str = "train"
) -> Complexity:
    """Count the parameters and the multiply-adds of one forward of one image.

    Args:
        model: any module that takes an image batch: this package's, timm's, a feature wrapper. Its `forward_counted`
            is run, if it has one.
        input_size: (C, H, W), (H, W) or one side; default that of the model's pretrained_cfg.
        batch_norm: "train" (5 per element, the papers' count) or "eval" (2).

    Raises:
        ValueError: an input_size that is missing or no size, an unknown batch_norm.
        NotImplementedError: an operator of this package without a count.
    """
    if batch_norm not in BATCH_NORM:
        raise ValueError(f"unknown batch_norm {batch_norm!r}: choose one of {', '.join(BATCH_NORM)}")
    size = _resolve_size(model, input_size)
    folding = [module for module in model.modules() if getattr(module, "fold_norms", False)]
    counter = _Counter(BATCH_NORM[batch_norm])
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    with _as_it_was(model):
        model.eval()
        for module in folding:
            vars(module)["fold_norms"] = False  # else the norms would not be seen
        # One path for all, so that a count depends neither on what is built here nor on what was demanded around it.
        with vssm.ops.use("torch"), torch.no_grad(), _without_memory(model), counter:
            getattr(model, "forward_counted", model)(torch.empty(1, *size, dtype=like.dtype, device=like.device))
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    by_operator = {name: macs for name, macs in counter.macs.items() if macs}
    return Complexity(type(model).__name__, size, params, sum(by_operator.values()), by_operator)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Puts the attributes of all modules back, with the contents of dictionaries: some of timm's networks keep what
    they compute once, which on fake tensors would be no numbers."""
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    dictionaries = [(value, dict(value)) for _, kept in attributes for value in kept.values() if type(value) is dict]
    try:
        yield
    finally:
        for there, kept in (*attributes, *dictionaries):
            there.clear()
            there.update(kept)


def _without_memory(model: nn.Module) -> AbstractContextManager:
    """Makes tensors that are shapes only, where the model's are not already; those of the meta device are quicker."""
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    if tensors and all(tensor.is_meta for tensor in tensors):
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode  # 0.2 s, and only needed here

    return FakeTensorMode(allow_non_fake_inputs=True)


def _resolve_size(model: nn.Module, size: int | Sequence[int] | None) -> tuple[int, int, int]:
    if size is None:
        size = getattr(model, "pretrained_cfg", {}).get("input_size")
        if size is None:
            raise ValueError(f"{type(model).__name__} has no pretrained_cfg; pass input_size=(C, H, W)")
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) == 2:
        size = (getattr(model, "in_chans", 3), *size)
    if len(size) != 3 or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(f"input_size must be (C, H, W), (H, W) or one side, all positive, got {size}")
    return size  # pyright: ignore[reportReturnType]


class _Counter(TorchDispatchMode):
    """Adds up multiply-adds by operator while a model runs."""

    def __init__(self, batch_norm: int):
        super().__init__()
        self.batch_norm = batch_norm
        self.macs: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        rule = _RULES.get(packet)
        if rule is None and packet is not torch.ops.prim.device and func.namespace != "vssm":
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if func.namespace == "vssm":
            self.macs.update(_count(func, args))
        elif rule is not None:
            self.macs.update(rule(args, kwargs, result))
        if packet in _BATCH_NORMS:
            self.macs["batch_norm"] += self.batch_norm * args[0].numel()
        return result


Rule = Callable[[tuple, dict, Any], dict[str, int]]
_RULES: dict[Any, Rule] = {}
_BATCH_NORMS = {
    aten.batch_norm,
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm,
    aten.miopen_batch_norm,
    aten._batch_norm_with_update,
}


def _rule(*packets: Any) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(packets, function))
        return function

    return add


@_rule(*_BATCH_NORMS)
def _(args, kwargs, out):
    return {}  # counted by the mode, which knows the flags


@_rule(aten.convolution, aten._convolution, aten.cudnn_convolution, aten.mkldnn_convolution)
def _(args, kwargs, out):
    x, weight = args[:2]
    transposed = len(args) > 6 and bool(args[6])
    # A transposed convolution multiplies every input element with its whole kernel.
    elements = x.numel() * weight[0].numel() if transposed else out.numel() * weight[0].numel()
    return {"conv": elements}


@_rule(torch.ops.torchvision.deform_conv2d)
def _(args, kwargs, out):
    x, weight = args[:2]
    samples = out.numel() // out.shape[1] * x.shape[1] * weight[0, 0].numel()
    return {"conv": out.numel() * weight[0].numel(), "sampling": 4 * samples}


@_rule(aten.mm, aten.bmm, aten.mv, aten.matmul, aten.linear)
def _(args, kwargs, out):
    return {"linear": out.numel() * args[0].shape[-1]}


@_rule(aten.addmm, aten.baddbmm, aten.addmv)
def _(args, kwargs, out):
    return {"linear": out.numel() * args[1].shape[-1]}


@_rule(
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_fused_attention_overrideable,
)
def _(args, kwargs, out):
    query, key, value = args[:3]
    return {"linear": math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])}


@_rule(aten.native_layer_norm, aten.layer_norm)
def _(args, kwargs, out):
    return layer_norm_macs(args[0].shape, args[2] if len(args) > 2 else None)


@_rule(aten.native_group_norm, aten.group_norm)
def _(args, kwargs, out):
    return {"group_norm": 5 * args[0].numel()}


@_rule(aten.mean)
def _(args, kwargs, out):
    x, dims = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
    if x.dim() != 4 or not isinstance(dims, Sequence):
        return {}
    # An adaptive pooling to 1 x 1 arrives as the mean over both sides of a map, NCHW or NHWC.
    return {"pool": x.numel()} if sorted(d % 4 for d in dims) in ([2, 3], [1, 2]) else {}


@_rule(aten._adaptive_avg_pool2d)
def _(args, kwargs, out):
    return {"pool": args[0].numel()}


@_rule(aten.upsample_nearest2d)
def _(args, kwargs, out):
    return {"upsample": out.numel()}


@_rule(aten.upsample_bilinear2d, aten._upsample_bilinear2d_aa)
def _(args, kwargs, out):
    return {"upsample": 4 * out.numel()}


def _count(func: Any, args: tuple) -> dict[str, int]:
    """An operator of this package, which declares its count."""
    operator = OPERATORS.get(func._overloadpacket.__name__)
    if operator is None:
        raise NotImplementedError(f"no count of multiply-adds for operator {func}: it has no declaration")
    return operator.macs(*(arg.shape if isinstance(arg, Tensor) else arg for arg in args[:-1]))
