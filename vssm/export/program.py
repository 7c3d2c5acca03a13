"""A network as torch's exported program, of torch's own operators."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import vssm.ops
from vssm.export.pooling import exact_pooling
from vssm.export.sizes import Sizes

__all__ = ["Features", "Half", "trace"]


class Features(nn.Module):
    """The maps of a backbone (B, C, h, w), one output for each stage."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(x, intermediates_only=True)


class Half(nn.Module):
    """A copy of a network with weights in float16, for float32 images and results. Its recurrences and norms compute in
    float32, as the operators of this package do."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, x: Tensor) -> Any:
        y = self.network(x.half())
        return [one.float() for one in y] if isinstance(y, list | tuple) else y.float()


def trace(network: nn.Module, sizes: Sizes, path: str = "portable") -> torch.export.ExportedProgram:
    """The network on images of these sizes, its operators on a path of `vssm.ops`.

    Raises ValueError when the network cannot take images of free sizes, or torch cannot trace it.
    """
    image = torch.zeros(sizes.example(), device=next(network.parameters()).device)
    try:
        with torch.no_grad(), exact_pooling(network), vssm.ops.use(path):
            return torch.export.export(network, (image,), dynamic_shapes=sizes.dims())
    except (AssertionError, RuntimeError, ValueError) as error:
        free = [size for size in sizes.dynamic if size != "batch"]
        said = _reason(error)
        if free:
            raise ValueError(
                f"the network cannot be exported with free {' and '.join(free)} ({said}); fix the size, or choose a "
                "network that takes images of any size"
            ) from error
        raise ValueError(f"torch.export cannot trace the network: {said}") from error


def _reason(error: Exception) -> str:
    """In a line: what torch lists of sizes that do not fit, or its first line."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    listed = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (listed or lines)[0]
