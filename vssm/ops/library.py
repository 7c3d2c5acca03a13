"""The `vssm` namespace of torch operators, and the pattern that every operator of this package follows.

An operator is two functional torch operators, forward and backward. Both take a trailing `str path`: the
implementation that was demanded ("" = choose at run time), so that a backward takes the path its forward took.
`Library.define`/`impl` are used rather than `custom_op` because a call costs about half as much.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("vssm", "FRAGMENT")

# The implementation of each operator, for `vssm.ops.pointwise.call`.
KERNELS: dict[torch._ops.OpOverload, Callable] = {}


def define(schema: str, kernel: Callable, fake: Callable) -> None:
    """Register one operator: its schema, its implementation on every device, its shape function."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vssm::{name}", fake, lib=LIBRARY)
    KERNELS[getattr(torch.ops.vssm, name).default] = kernel


def differentiable(name: str, backward: Callable, setup_context: Callable) -> None:
    """Attach the autograd formula of operator `name`."""
    torch.library.register_autograd(f"vssm::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def at_least_float32(*tensors: Tensor | None) -> torch.dtype:
    """The dtype an operator computes in: that of its widest input, and never below float32."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def widened(*values: Any) -> list[Any]:
    """Every floating tensor among `values` in the compute dtype; all else as it is."""
    floating = [isinstance(v, Tensor) and v.is_floating_point() for v in values]
    dtype = at_least_float32(*(v for v, is_floating in zip(values, floating) if is_floating))
    return [v.to(dtype) if is_floating else v for v, is_floating in zip(values, floating)]


def empty_like_or_none(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Undo the schema rule that an operator returns tensors only: an empty tensor stands for None."""
    return [None if t is None or t.numel() == 0 else t for t in tensors]
