"""Models to look at and not to run: built without filling their parameters."""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Unfilled(TorchFunctionMode):
    """`with Unfilled():` a model is built whose parameters have shapes and no sensible values.

    In-place fills do nothing, so that pages of memory are asked for and never touched. The meta device would do as
    well, but its arithmetic imports torch._dynamo and sympy, which take longer than the model.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        target = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
        if fills and isinstance(target, Tensor):
            return target
        return func(*args, **kwargs)
