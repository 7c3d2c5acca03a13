"""Ranges of bytes of files in one place: a local folder, or whatever fsspec reaches (http, s3, gs, ...)."""

import importlib
import os
import time
from pathlib import Path
from typing import Any, Protocol

from vssm.data.shards.index import INDEX, MAX_INDEX_BYTES

__all__ = ["LocalRanges", "Ranges", "RemoteRanges", "is_remote", "open_ranges", "read_index"]

TRIES = 3
PAUSE = 0.2  # seconds before the second try, and twice as long before the next


class Ranges(Protocol):
    """Reads parts of files; from several threads at once, and in processes that were forked."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset` on. Raises OSError with the reason."""
        ...


def is_remote(location: str) -> bool:
    return "://" in location


def open_ranges(location: str) -> "Ranges":
    return RemoteRanges(location) if is_remote(location) else LocalRanges(location)


def read_index(location: str) -> bytes:
    """The index of a folder of shards, of at most one byte more than it may have. Raises OSError with the remedy."""
    try:
        return open_ranges(location).read(INDEX, 0, MAX_INDEX_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{location} has no {INDEX}; expected a folder of shards as `vssm pack FOLDER {location}` writes it"
        ) from None


class LocalRanges:
    """Files of a local folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def read(self, name: str, offset: int, length: int) -> bytes:
        with (self.folder / name).open("rb", buffering=0) as file:
            file.seek(offset)
            size = min(length, os.fstat(file.fileno()).st_size - offset)
            parts: list[bytes] = []
            while size > 0:  # a system may read less at once
                part = file.read(size)
                if not part:
                    break
                parts.append(part)
                size -= len(part)
        return b"".join(parts)


class RemoteRanges:
    """Files below a URL, through fsspec. What fails is tried again."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_opened": None}

    def read(self, name: str, offset: int, length: int) -> bytes:
        system, root = self._system()
        path = f"{root}/{name}"
        for attempt in range(1, TRIES + 1):
            try:
                if name == INDEX:  # servers may refuse a range that ends after the file
                    with system.open(path, "rb") as file:
                        return file.read(length)
                return system.cat_file(path, start=offset, end=offset + length)
            except FileNotFoundError:
                raise FileNotFoundError(f"{self.url}/{name}: not found") from None
            except Exception as error:
                if attempt == TRIES:
                    reason = f"{type(error).__name__}: {error} (tried {TRIES} times)"
                    raise OSError(f"{self.url}/{name}: {reason}") from error
                time.sleep(PAUSE * 2 ** (attempt - 1))
        raise AssertionError("the last try returns or raises")

    def _system(self) -> tuple[Any, str]:
        """The file system, of this process: its connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                fsspec: Any = importlib.import_module("fsspec.core")
            except ModuleNotFoundError:
                raise ModuleNotFoundError("URLs need fsspec: pip install 'vssm[remote]'", name="fsspec") from None
            try:
                system, root = fsspec.url_to_fs(self.url, skip_instance_cache=True)
            except (ImportError, ValueError) as error:
                raise ValueError(f"{self.url}: fsspec cannot open it ({error})") from None
            self._opened = (os.getpid(), system, root)
        return self._opened[1], self._opened[2]
