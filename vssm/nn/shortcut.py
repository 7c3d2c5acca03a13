"""The one question that every shortcut asks: is what it skips exactly what was built, and is it free of hooks?

A shortcut computes what a composition of modules computes without calling each of them: two linear layers as one
operator, a sum inside the last projection, a norm and its gate in one pass. It must be invisible. So its owner asks
`as_built` of every module that it would not call, at every forward: nothing is kept, so nothing can be stale.
"""

# Hooks on all modules: torch has no public way to ask for them, and does not annotate what they return.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from typing import TypeGuard, TypeVar

import torch
import torch.nn.modules.module as torch_module
from timm.layers import DropPath, is_scriptable  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Proxy

__all__ = ["Shortcut", "add_branch", "as_built"]

Kind = TypeVar("Kind", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def as_built(module: nn.Module | None, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module may be skipped by an owner that does its work: exactly of this kind, without hooks.

    False for what stands in for a layer (subclasses, parametrised, quantised and low-rank layers), for a module with a
    forward or backward hook of any sort or a `forward` of its own, while hooks on all modules are set, for parameters
    that are subclasses of Tensor, and under `torch.jit.trace`, which is to record plain operators.
    """
    if type(module) is not kind or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return False
    state = module.__dict__
    for name in _HOOKS:
        if state[name]:
            return False
    if "forward" in state or _hooks_on_all():
        return False
    # torch.export traces with fake tensors in the place of plain ones; other subclasses keep their type there.
    plain = (nn.Parameter, Tensor, FakeTensor) if torch.compiler.is_exporting() else (nn.Parameter, Tensor)
    return all(p is None or type(p) in plain for p in state["_parameters"].values())


def _hooks_on_all() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


class Shortcut(nn.Module):
    """A module that takes shortcuts, unless it was built to be scripted.

    TorchScript knows no `as_built`. As elsewhere in timm, a model for scripting is built as one, by
    `timm.create_model(..., scriptable=True)` or inside `timm.layers.set_scriptable(True)`: it is then the plain
    composition of its layers. `torch.jit.script` refuses others with this remedy.
    """

    __constants__ = ("shortcuts",)  # what TorchScript decides at compile time

    def __init__(self) -> None:
        super().__init__()
        self.shortcuts = not is_scriptable()

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by torch.jit.script before it compiles."""
        if self.shortcuts:
            raise ValueError(
                f"{type(self).__name__} was not built to be scripted; create the model with "
                "timm.create_model(..., scriptable=True), or inside `with timm.layers.set_scriptable(True):`"
            )
        return self


def add_branch(x: Tensor, norm: nn.Module, branch: nn.Module, kind: type[nn.Module], drop_path: nn.Module) -> Tensor:
    """x + drop_path(branch(norm(x))), in every mode.

    A branch of this kind takes a residual, and adds it in the pass that writes its result. So does this function where
    drop_path does nothing.
    """
    if not isinstance(x, Proxy) and as_built(branch, kind) and _does_nothing(drop_path):
        return branch(norm(x), x)
    return x + drop_path(branch(norm(x)))


def _does_nothing(drop_path: nn.Module) -> bool:
    if as_built(drop_path, DropPath):
        return not drop_path.training or drop_path.drop_prob == 0
    return as_built(drop_path, nn.Identity)
