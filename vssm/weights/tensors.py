"""What a tensor of a file has to be before a network takes it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vssm.weights.errors import CheckpointError
from vssm.weights.names import some

__all__ = ["check_plain", "check_values"]


def check_plain(origin: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError that names the tensors without plain real values of their own in memory."""
    for problem, applies in _NOT_PLAIN.items():
        names = [name for name, tensor in tensors.items() if applies(tensor)]
        if names:
            raise CheckpointError(
                f"{origin} has {problem}, which are no weights of a network, {len(names)}: {some(names)}; save it with "
                "plain tensors (dense, real, on the CPU)"
            )


def _repeats(tensor: Tensor) -> bool:
    """Is a value counted more often than it is stored? A small file would otherwise fill the memory."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


_NOT_PLAIN: dict[str, Callable[[Tensor], bool]] = {
    "nested or otherwise special tensors": lambda t: type(t) not in (Tensor, torch.nn.Parameter) or t.is_nested,
    "sparse tensors": lambda t: t.layout != torch.strided,
    "tensors without values (meta)": lambda t: t.device.type != "cpu",
    "quantised tensors": lambda t: t.is_quantized,
    "complex tensors": lambda t: t.is_complex(),
    "expanded tensors": _repeats,
}


def check_values(origin: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None) -> None:
    """Raises CheckpointError that names the tensors of another kind than the model's (integers for reals), and
    those with NaN or infinity where the model has none.

    own: the model's tensors under the same names; without it all but the counters of BatchNorm have to be real.
    """
    kinds = {
        name: (_kind(tensor.dtype), _kind(own[name].dtype) if own else "integer" if _is_counter(name) else "real")
        for name, tensor in tensors.items()
    }
    others = [f"{name} {has} instead of {wants}" for name, (has, wants) in kinds.items() if has != wants]
    if others:
        raise CheckpointError(
            f"{origin} has values of another kind than the model, {len(others)}: {some(others)}; save the weights as "
            "floating-point tensors"
        )
    broken = [
        name for name, tensor in tensors.items() if not _is_finite(tensor) and (own is None or _is_finite(own[name]))
    ]
    if broken:
        raise CheckpointError(
            f"{origin} has NaN or infinity in {len(broken)} of {len(tensors)} tensors: {some(broken)}. The training "
            "that wrote it diverged, or the file is damaged: take an earlier checkpoint"
        )


def _kind(dtype: torch.dtype) -> str:
    return "real" if dtype.is_floating_point else "boolean" if dtype == torch.bool else "integer"


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    if tensor.element_size() == 1:  # 8-bit floats have next to no operations
        tensor = tensor.float()
    low, high = tensor.aminmax()  # NaN goes through
    return bool(low.isfinite() and high.isfinite())
