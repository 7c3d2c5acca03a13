"""timm without torch._dynamo, for commands that compile nothing."""

import functools
import gc
import sys
from types import ModuleType


def import_timm() -> None:
    """Import timm without what it does not need, for a process that has one thing to do and compiles nothing.

    timm imports torchvision.ops, and that torch._dynamo and sympy for a function that tells whether a device can be
    compiled for; another of torchvision's functions is marked by the same. Both get a stand-in here that imports
    torch._dynamo when it is called. Nothing else differs, and nothing of it is left behind in `sys.modules` or in
    torch. `benchmarks/start.py` times a command that does so beside a plain `import timm`.
    """
    if "timm" in sys.modules or "torch._dynamo" in sys.modules:
        import timm

        return
    collects = gc.isenabled()
    gc.disable()  # what importing makes is there to stay; looking through it again and again finds nothing
    try:
        import torch

        stand_in = ModuleType("torch._dynamo.utils")
        stand_in.is_compile_supported = _is_compile_supported  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules[stand_in.__name__] = stand_in
        disable, torch.compiler.disable = torch.compiler.disable, _disable_when_called
        try:
            import timm  # noqa: F401
        finally:
            torch.compiler.disable = disable
            del sys.modules[stand_in.__name__]
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


def _disable_when_called(fn=None, recursive: bool = True, *, reason: str | None = None):
    """torch.compiler.disable, which imports torch._dynamo, put off to the first call of what it marks."""
    if fn is None:
        return functools.partial(_disable_when_called, recursive=recursive, reason=reason)

    @functools.cache
    def disabled():
        import torch

        return torch.compiler.disable(fn, recursive, reason=reason)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        return disabled()(*args, **kwargs)

    return call
