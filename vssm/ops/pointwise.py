"""What the operators around the scan share: layer_norm, bias_act, depthwise_conv3x3, state_fusion.

They are cheap next to a matrix product, so the cost of a call counts, and a compiler that sees their plain form can
fuse it.
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vssm.ops import native
from vssm.ops.library import KERNELS, LIBRARY


def call(op: torch._ops.OpOverload, *args):
    """Call an operator. In inference on the CPU with nobody looking on, its implementation at once: torch's dispatcher
    takes a good part of a small call, and a network makes many for one image."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*args)
    if is_direct(*args):
        return KERNELS[op](*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


# Types an implementation may be handed directly: no subclass of Tensor, which may have its own idea of the operator.
_PLAIN = {Tensor, torch.nn.Parameter, type(None), str, int, float, bool, list}


def is_direct(*args) -> bool:
    """Whether the memory of these arguments, the first one's device standing for all, may be worked on at once."""
    if torch.compiler.is_compiling():
        return False
    return (args[0] is None or args[0].is_cpu) and _PLAIN.issuperset(map(type, args)) and not _somebody_looks()


def _somebody_looks() -> bool:
    """Whether a mode, a transform, a tracer or a profiler wants to see operators."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()  # pyright: ignore[reportAttributeAccessIssue]
    )


def differentiable(name: str, backward: Callable, setup_context: Callable) -> None:
    """Attach the autograd formula of operator `name`, whose tensors are all direct arguments.

    What torch.library.register_autograd does for any schema, at half its cost per call.
    """
    op = getattr(torch.ops.vssm, name).default

    def forward(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(backward))}
    node = type(name, (torch.autograd.Function,), methods)

    def kernel(*inputs):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return node.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    LIBRARY.impl(name, kernel, "Autograd")


def prefers_plain(path: str) -> bool:
    """Whether a free choice is the plain form under torch.compile and torch.export, because it fuses and exports
    everywhere. Compiled inference on the CPU core keeps our operators: there they are faster than what is fused."""
    if path or not torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch.compiler.is_exporting() or not native.available()


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest dtype among the tensors given."""
    dtype: torch.dtype | None = None
    for t in tensors:
        if t is not None and t.dtype != dtype:
            dtype = t.dtype if dtype is None else torch.promote_types(dtype, t.dtype)
    assert dtype is not None
    return dtype


def to(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """Every tensor given in one dtype; None stays None."""
    return [None if t is None else t.to(dtype) for t in tensors]


def as_inputs(inputs: tuple[Tensor | None, ...], grads: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Gradients in the dtype of their inputs; an absent one becomes the empty tensor that a schema can return."""
    like = next(x for x in inputs if x is not None)
    return [
        like.new_empty(0) if g is None or x is None else (g if g.dtype is x.dtype else g.to(x.dtype))
        for x, g in zip(inputs, grads, strict=True)
    ]


def check_per_channel(name: str, t: Tensor | None, channels: int) -> None:
    """One ValueError for a weight or bias that is not one number per channel."""
    if t is not None and (t.dim() != 1 or t.shape[0] != channels):
        raise ValueError(f"{name} must be ({channels},), one number per channel of x, got {tuple(t.shape)}")


def empty_map(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised map (B, C, H, W) like x with the channels of a pixel contiguous in memory."""
    return torch.empty(
        x.shape, dtype=x.dtype if dtype is None else dtype, device=x.device, memory_format=torch.channels_last
    )


# ---- calls into the compiled core (csrc/pointwise.h): arguments are packed, not built as a ctypes structure, which
# ---- would take longer at every call

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ABSENT = (0, 0)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    for t in tensors:
        if t is not None and t.dtype is torch.float64:
            return torch.float64
    return torch.float32


def address(t: Tensor | None) -> int:
    """Where the data of a tensor begins, 0 for None."""
    return 0 if t is None else t.data_ptr()


def typed(t: Tensor | None) -> tuple[int, int]:
    """A struct Tensor of csrc/pointwise.h."""
    return ABSENT if t is None else (t.data_ptr(), _TYPES[t.dtype])


@overload
def dense(t: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def dense(t: None, dtype: torch.dtype) -> None: ...
def dense(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A weight as the core reads it: contiguous, of the compute dtype."""
    if t is None or (t.dtype is dtype and t.is_contiguous()):
        return t
    return t.to(dtype).contiguous()


def channels_last(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as the core reads it: the channels of a pixel contiguous in memory."""
    return x.contiguous(memory_format=torch.channels_last)
