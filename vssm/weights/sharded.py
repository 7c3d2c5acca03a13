"""Reading checkpoints in shards (`vssm._sharded`): whole, in one process, or each process its part.

The engine is torch.distributed.checkpoint with its safetensors storage. Its usual storage keeps the metadata as a
pickle, `.metadata`, which it reads without restriction: a stranger's file would run code. In safetensors the place of a
shard is JSON in the header of its file, and a process holds no more than it reads.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from vssm._sharded import REST, damage
from vssm.weights.errors import CheckpointError

__all__ = ["PLACES", "check_sharded", "fill", "read_sharded"]

PLACES = "sharded"  # the entry of rest.ckpt with the path of each sharded tensor: name -> keys from the outside inwards

Rest = Callable[[Path], Any]


def check_sharded(path: Path) -> None:
    """Raises CheckpointError when it is not as it was written: every byte is compared with its checksum."""
    found = damage(path)
    if found is not None:
        raise CheckpointError(f"{path} is damaged ({found})")


def read_sharded(
    path: Path,
    read_rest: Rest,
    max_bytes: float = float("inf"),
    create: Callable[[torch.Size, torch.dtype], Tensor] | None = None,
    shapes_only: bool = False,
) -> dict[str, Any]:
    """What a whole checkpoint file of the same training would hold, after the checksums were compared.

    Args:
        read_rest: reads rest.ckpt
        max_bytes: refuse tensors of more bytes in sum
        create: makes the tensor that one is read into; with it all processes have to call this, and each reads the
            parts that its tensors have. By default whole tensors on the CPU, in this process alone.
        shapes_only: zeros in place of the values, which take no memory and are not read

    Raises CheckpointError that names the folder.
    """
    check_sharded(path)
    content = read_rest(path / REST)
    if not isinstance(content, dict) or not isinstance(cast(dict[str, Any], content).get(PLACES), dict):
        raise CheckpointError(f"{path} is damaged ({REST} does not say where the shards belong)")
    content = cast(dict[str, Any], content)
    places = cast(dict[str, list[Any]], content.pop(PLACES))
    found = _sizes(path)
    if set(found) != set(places):
        raise CheckpointError(f"{path} is damaged (it lacks {', '.join(sorted(set(found) ^ set(places))[:5])})")
    needed = sum(size.numel() * dtype.itemsize for size, dtype in found.values())
    if needed > max_bytes:
        raise CheckpointError(f"{path} has {needed} bytes of tensors, more than the {max_bytes} allowed")
    if shapes_only:
        tensors = {name: _unread(size, dtype) for name, (size, dtype) in found.items()}
    else:
        make = create or _on_cpu
        tensors = {name: make(size, dtype) for name, (size, dtype) in found.items()}
        fill(tensors, path, alone=create is None)
    for name, keys in places.items():
        _put(content, keys, tensors[name], path)
    return content


def fill(tensors: Mapping[str, Tensor], path: Path, alone: bool) -> None:
    """Reads the values of tensors, of DTensors the parts of this process."""
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(path))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.distributed is .*single process.*")
            cast(Any, state_dict_loader).load(dict(tensors), storage_reader=reader, no_dist=alone)
    except CheckpointException as error:  # a BaseException, in every process
        reasons = "; ".join(str(reason) for reason, _ in error.failures.values())
        raise CheckpointError(f"{path} cannot be read ({reasons})") from None


def _sizes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Of the whole tensors, by name. CheckpointError unless the shards of each, along its first dimension, are all
    there and do not overlap."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        stored = cast(Any, HuggingFaceStorageReader)(str(path)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged (its shards cannot be read: {error})") from error
    found: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for name, about in stored.items():
        end, rest = 0, about.size[1:]
        for chunk in sorted(about.chunks, key=lambda chunk: (tuple(chunk.offsets), tuple(chunk.sizes))):
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            if not sizes or 0 in sizes:  # of a process that has no part of it
                continue
            if offsets != (end, *[0] * len(rest)) or sizes[1:] != tuple(rest):
                raise CheckpointError(f"{path} is damaged (a part of {name} is missing, or is there twice)")
            end += sizes[0]
        if not about.size or end != about.size[0]:
            raise CheckpointError(f"{path} is damaged (a part of {name} is missing)")
        found[name] = (about.size, about.properties.dtype)
    return found


def _on_cpu(size: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype)


def _unread(size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros that the system gives no memory to while nobody writes them, as numpy asks for it (calloc)."""
    return cast(Any, torch).from_numpy(np.zeros(size.numel() * dtype.itemsize, np.uint8)).view(dtype).view(size)


def _put(content: Any, keys: list[Any], tensor: Tensor, path: Path) -> None:
    try:
        *outer, last = keys
        for key in outer:
            content = content[key]
        content[last] = tensor
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({REST} has no place for a shard: {error})") from error
