"""How checkpoints in shards get on the disk: every process writes its part into one folder.

Written beside the old one, each file flushed to the disk (fsync) and its checksum put into a manifest, the folder
flushed, and only then renamed: a folder under its final name is whole.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from vssm._sharded import REST, describe_file, write_manifest
from vssm._writing import naming, sync, sync_folder
from vssm.inference.run_dir import remove_checkpoint
from vssm.train.checkpoint_files import AtomicCheckpointIO, write
from vssm.weights.sharded import PLACES

T = TypeVar("T")


def save_shards(checkpoint: Mapping[str, Any], path: Path, files: AtomicCheckpointIO) -> None:
    """Every process calls this, with its parts of the DTensors in `checkpoint`; all else is taken from the first.

    Raises OSError with the name of the folder, in all of them, when one cannot write.
    """
    tensors, rest = _apart(checkpoint)
    first = dist.get_rank() == 0
    (new, *_) = _together(lambda: path.with_name(f".{path.name}.{os.getpid()}.tmp"))
    assert new is not None
    try:
        _together(lambda: _create(new, path) if first else None)
        _save_tensors(tensors, new, path)
        (names, *_) = _together(lambda: sorted(file.name for file in new.iterdir()) if first else [])
        own = names[dist.get_rank() :: dist.get_world_size()]
        described = _together(lambda: {name: describe_file(new / name) for name in own})
        _together(lambda: _finish(rest, described, new, path, files) if first else None)
    finally:
        if first and new.exists():
            remove_checkpoint(new)


def _create(new: Path, path: Path) -> None:
    with naming(path, new):
        path.parent.mkdir(parents=True, exist_ok=True)
        if new.exists():  # of an earlier process with this number
            remove_checkpoint(new)
        new.mkdir()


def _save_tensors(tensors: dict[str, Tensor], new: Path, path: Path) -> None:
    writer = HuggingFaceStorageWriter(str(new), save_distributed=True)  # it flushes every file to the disk
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
            save(tensors, storage_writer=writer)
    except CheckpointException as error:  # a BaseException, in every process
        reasons = [reason for reason, _ in error.failures.values()]
        failed = next((reason for reason in reasons if isinstance(reason, OSError)), None)
        if failed is None:
            raise RuntimeError(f"{path} cannot be written ({'; '.join(map(str, reasons))})") from error
        raise OSError(failed.errno, failed.strerror or str(failed), str(path)) from error


def _finish(
    rest: dict[str, Any], described: list[dict[str, Any]], new: Path, path: Path, files: AtomicCheckpointIO
) -> None:
    with naming(path):
        write(rest, new / REST)
        sync(new / REST)
        known = {name: about for part in described for name, about in part.items()}
        sync(write_manifest(new, {REST: describe_file(new / REST), **known}))
        sync_folder(new)
        files.take(new, path, rest.get("global_step"))


def _apart(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The sharded tensors by a name that is their path, and the checkpoint without them, but with these paths."""
    tensors: dict[str, Tensor] = {}
    places: dict[str, list[Any]] = {}

    def rest_of(value: Any, keys: tuple[Any, ...]) -> Any:
        if isinstance(value, DTensor):
            name = "/".join(map(str, keys))
            tensors[name], places[name] = value, list(keys)
            return None
        if isinstance(value, Mapping):
            return {key: rest_of(inner, (*keys, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [rest_of(inner, (*keys, number)) for number, inner in enumerate(value)]
        return value

    rest = rest_of(checkpoint, ())
    return tensors, rest | {PLACES: places}


def _together(work: Callable[[], T]) -> list[T]:
    """What `work` gives in each process, by rank. An OSError of one is raised in all, so that none waits for it."""
    try:
        mine: tuple[T | None, OSError | None] = (work(), None)
    except OSError as error:
        mine = (None, error)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    for _, error in found:
        if error is not None:
            raise error
    return [result for result, _ in found]
