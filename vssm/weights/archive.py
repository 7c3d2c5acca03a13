"""What a torch file unpacks to, looked up before anything of it is unpacked, and whether it is as it was written."""

import zipfile
import zlib
from pathlib import Path

import torch

from vssm._sharded import is_sharded
from vssm.weights.errors import CheckpointError
from vssm.weights.pickle_cost import MAX_BYTES as MAX_PICKLE_BYTES
from vssm.weights.pickle_cost import check_pickle
from vssm.weights.sharded import check_sharded

__all__ = ["LEGACY_PICKLES", "MAX_RATIO", "check_archive", "check_intact", "check_legacy"]

# torch.save does not compress, and trained weights hardly shrink.
MAX_RATIO = 100
# In a row at the beginning of a file of torch before 1.6: magic number, version, system, content, names of storages.
LEGACY_PICKLES = 5


def check_archive(path: Path, max_bytes: int) -> None:
    """Raises CheckpointError for a zip archive that unpacks to far more than its size, or to an excessive pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_sizes(path, entries, max_bytes)
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    check_pickle(archive.read(entry), 0, str(path))
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or no checkpoint ({error}); download it again") from error


def check_intact(path: Path) -> None:
    """Raises CheckpointError when a file of torch.save, or a checkpoint in shards, is not as it was written.

    Reads all of it and compares each entry with the CRC-32 that torch.save stored for it, each file of a checkpoint in
    shards with the SHA-256 of its manifest. Files of torch before 1.6 have none and are not checked.
    """
    if is_sharded(path):
        return check_sharded(path)
    with path.open("rb") as file:
        if file.read(1) == b"\x80":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (the checksum of {damaged} in it does not match)")
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # headers that zipfile does not look at
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged ({str(error).partition('. ')[0]})") from error


def _check_sizes(path: Path, entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    pickles = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if pickles > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{path} is refused: what is beside its tensors unpacks to {pickles} bytes, more than the "
            f"{MAX_PICKLE_BYTES} allowed. If you trust its source, save its state dict alone and load that"
        )
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    if unpacked > min(max_bytes, MAX_RATIO * size):
        raise CheckpointError(
            f"{path} is refused: its {size} bytes unpack to {unpacked}, more than {MAX_RATIO} times as much or than "
            f"the {max_bytes} allowed. Save its state dict with torch.save, which does not compress"
        )


def check_legacy(path: Path) -> None:
    """Raises CheckpointError for an excessive file of torch before 1.6: pickles in a row, then the values."""
    with path.open("rb") as file:
        data = file.read(MAX_PICKLE_BYTES)
    at: int | None = 0
    for _ in range(LEGACY_PICKLES):
        if at is None or at >= len(data):
            return  # torch's reader stops there and reports why
        at = check_pickle(data, at, str(path))
