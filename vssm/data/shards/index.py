"""The index of a folder of shards: which bytes of which shard are which image, and of which class.

A JSON file: {"format": "vssm-shards-1", "classes": [NAME, ...], "shards": [{"name", "bytes", "sha256", "keys",
"offsets", "lengths", "labels"}, ...]}, the last four with one entry per image. It may be a stranger's, so it is bounded
and checked before anything is read by it.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "INDEX",
    "MAX_IMAGE_BYTES",
    "MAX_INDEX_BYTES",
    "SPLITS",
    "Shard",
    "ShardIndex",
    "parse_index",
    "write_index",
]

INDEX = "shards.json"
FORMAT = "vssm-shards-1"
SPLITS = ("train", "val", "test")
# ImageNet-22k has 14 million images; each takes about 50 bytes here.
MAX_INDEX_BYTES = 2**30
MAX_IMAGE_BYTES = 2**28
MAX_CLASSES = 10**6
MAX_KEY = 100
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}\.tar")
_KEY = re.compile(r"[A-Za-z0-9_/-]{1,100}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 512  # of a tar file: members start at multiples of it, after a header of one


@dataclass(frozen=True)
class Shard:
    """One tar file: its name beside the index, its size in bytes, and its SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """All images of a folder of shards, in the order of the shards and of the members in each.

    starts: (S + 1,) int64, the first image of each of the S shards, and the number of images N. keys: (N,) bytes.
    offsets, lengths: (N,) int64, of an image in its shard, in bytes. labels: (N,) int32, into `classes`. digest:
    SHA-256 of the file, in hexadecimal.
    """

    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    starts: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int32]
    digest: str

    def __len__(self) -> int:
        return len(self.keys)

    def shard_of(self, image: int) -> int:
        return int(np.searchsorted(self.starts, image, "right")) - 1


def write_index(classes: Sequence[str], shards: Sequence[dict[str, Any]]) -> bytes:
    """The file's content, from the entries of the shards."""
    plain = {"format": FORMAT, "classes": list(classes), "shards": list(shards)}
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()


def parse_index(content: bytes, name: str) -> ShardIndex:
    """Checks the whole content of an index. `name` is for messages.

    Raises ValueError that says what is wrong: no JSON, another format, names that lead elsewhere, ranges outside of
    their shard, classes that are not there, a key twice.
    """
    if len(content) > MAX_INDEX_BYTES:
        _refuse(name, f"larger than {MAX_INDEX_BYTES} bytes")
    try:
        plain = json.loads(content)
    except (ValueError, RecursionError) as error:
        _refuse(name, f"no valid JSON ({error})")
    plain = _mapping(plain, name, "the file")
    if plain.get("format") != FORMAT:
        _refuse(name, f"format is {plain.get('format')!r}, this version reads {FORMAT!r}")
    classes = _classes(plain.get("classes"), name)
    entries = plain.get("shards")
    if not isinstance(entries, list) or not entries:
        _refuse(name, "no shards")
    parsed = [_shard(entry, len(classes), name) for entry in cast(list[Any], entries)]
    shards = tuple(shard for shard, _ in parsed)
    if len({shard.name for shard in shards}) < len(shards):
        _refuse(name, "a shard is listed twice")
    keys, offsets, lengths, labels = (np.concatenate(column) for column in zip(*(own for _, own in parsed)))
    if len(np.unique(keys)) < len(keys):
        _refuse(name, "a key is listed twice")
    starts = np.cumsum([0, *(len(own[0]) for _, own in parsed)], dtype=np.int64)
    digest = hashlib.sha256(content).hexdigest()
    return ShardIndex(classes, shards, starts, keys, offsets, lengths, labels.astype(np.int32), digest)


def _refuse(name: str, what: str) -> NoReturn:
    raise ValueError(f"{name}: {what}; expected the index that `vssm pack` writes, pack the images again") from None


def _mapping(value: Any, name: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(name, f"{what} is no JSON object")
    return cast(dict[str, Any], value)


def _classes(values: Any, name: str) -> tuple[str, ...]:
    found = cast(list[Any], values) if isinstance(values, list) else []
    if not 1 <= len(found) <= MAX_CLASSES:
        _refuse(name, f"{len(found)} classes, not 1 to {MAX_CLASSES}")
    if not all(isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable() for value in found):
        _refuse(name, "names of classes that are not printable text of at most 255 characters")
    if len(set(found)) < len(found):
        _refuse(name, "a class is listed twice")
    return tuple(found)


def _shard(entry: Any, classes: int, name: str) -> tuple[Shard, tuple[NDArray[Any], ...]]:
    entry = _mapping(entry, name, "a shard")
    own = entry.get("name")
    if not isinstance(own, str) or not _SHARD_NAME.fullmatch(own):
        _refuse(name, f"shard {str(own)[:100]!r} is no name of a .tar file beside the index")
    size, digest = entry.get("bytes"), entry.get("sha256")
    if type(size) is not int or not 0 < size < 2**62:
        _refuse(name, f"{own}: bytes is {str(size)[:40]}")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        _refuse(name, f"{own}: sha256 is not 64 hexadecimal digits")
    keys = entry.get("keys")
    if not isinstance(keys, list) or not keys:
        _refuse(name, f"{own}: no keys")
    found = cast(list[Any], keys)
    if not all(isinstance(key, str) and _KEY.fullmatch(key) for key in found):
        _refuse(name, f"{own}: keys that are not letters, digits, - and _ (at most {MAX_KEY})")
    offsets, lengths, labels = (
        _whole_numbers(entry, field, len(found), high, f"{name}: {own}")
        for field, high in (("offsets", size), ("lengths", MAX_IMAGE_BYTES), ("labels", classes - 1))
    )
    if (offsets % _BLOCK).any() or (offsets < _BLOCK).any() or (offsets + lengths > size).any():
        _refuse(name, f"{own}: images that do not lie in its {size} bytes, after a header each")
    return Shard(own, size, digest), (np.array(found, dtype=np.bytes_), offsets, lengths, labels)


def _whole_numbers(entry: dict[str, Any], field: str, count: int, high: int, where: str) -> NDArray[np.int64]:
    values = cast(list[Any], entry.get(field)) if isinstance(entry.get(field), list) else []
    if len(values) != count or set(map(type, values)) != {int} or min(values) < 0 or max(values) > high:
        _refuse(where, f"{field} must be {count} whole numbers from 0 to {high}")
    return np.array(values, dtype=np.int64)
