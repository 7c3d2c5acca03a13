"""Whether shards are what their index says."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vssm.data.parallel import map_ahead
from vssm.data.shards.index import INDEX, SPLITS, ShardIndex, parse_index
from vssm.data.shards.reading import read_index

__all__ = ["Verified", "packed_folders", "verify"]


@dataclass(frozen=True)
class Verified:
    """One folder with an index: how much it holds, and a sentence for each shard that is damaged."""

    folder: Path
    index: ShardIndex
    problems: tuple[str, ...]


def packed_folders(root: str | Path) -> list[Path]:
    """`root` itself, or its folders train, val and test, where they have an index; none elsewhere."""
    root = Path(root)
    return [folder for folder in (root, *(root / split for split in SPLITS)) if (folder / INDEX).is_file()]


def verify(folder: Path, threads: int | None = None, progress: Callable[[], object] = lambda: None) -> Verified:
    """Reads every shard: size, checksum, and that each range of the index is the member of its key.

    Raises OSError or ValueError when the index cannot be read or is not right. `progress` is called after each shard.
    """
    index = parse_index(read_index(str(folder)), str(folder / INDEX))
    threads = threads or os.cpu_count() or 1
    problems: list[str] = []
    for found in map_ahead(lambda shard: _damage(folder, index, shard), range(len(index.shards)), threads, 2 * threads):
        problems += found
        progress()
    return Verified(folder, index, tuple(problems))


def _damage(folder: Path, index: ShardIndex, number: int) -> list[str]:
    shard = index.shards[number]
    path = folder / shard.name
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return [f"{path}: {size} bytes, {shard.bytes} in the index"]
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                return [f"{path}: its checksum is not that of the index"]
        return list(_misplaced(path, index, number))[:1]
    except OSError as error:
        return [f"{path}: {error.strerror or error}"]


def _misplaced(path: Path, index: ShardIndex, number: int) -> Iterator[str]:
    with path.open("rb") as file:
        for image in range(index.starts[number], index.starts[number + 1]):
            file.seek(int(index.offsets[image]) - 512)
            key = index.keys[image].decode()
            if not file.read(100).startswith(f"{key}.".encode()):
                yield f"{path}: the member at {index.offsets[image]} is not {key}"
