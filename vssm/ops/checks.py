"""Checks that every operator makes of its arguments: one clear error that names the argument."""

from torch import Tensor

from vssm.ops import dispatch


def same_device(**tensors: Tensor | None) -> None:
    """One ValueError that names the first tensor on another device than the first one."""
    (first, reference_tensor), *rest = [(n, t) for n, t in tensors.items() if t is not None]
    for name, tensor in rest:
        if tensor.device != reference_tensor.device:
            raise ValueError(
                f"{name} is on {tensor.device} but {first} is on {reference_tensor.device}; "
                f"move it with .to({str(reference_tensor.device)!r})"
            )


def same_dtype(**tensors: Tensor | None) -> None:
    """One ValueError that names the first tensor of an unsupported dtype, or of another dtype than the first one."""
    (first, reference_tensor), *rest = [(n, t) for n, t in tensors.items() if t is not None]
    if reference_tensor.dtype not in dispatch.FLOATS:
        raise ValueError(f"{first} has dtype {reference_tensor.dtype}; supported: float32, float64, bfloat16, float16")
    for name, tensor in rest:
        if tensor.dtype != reference_tensor.dtype:
            raise ValueError(
                f"{name} has dtype {tensor.dtype} but {first} has {reference_tensor.dtype}; "
                f"convert it with .to({reference_tensor.dtype})"
            )
