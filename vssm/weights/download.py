"""Fetching a published file once, and noticing when it changes.

    cache/v2cls-vssm1_tiny_0230s_ckpt_epoch_264.pth     the file, there only when it is whole
    cache/.v2cls-vssm1_...pth.part, .part.json          the beginning of a download that was interrupted
    cache/sha256.json                                   the SHA-256 of every file when it first arrived

A hash that the publisher states is checked before a file takes its place. Most state none: the hash of the first
download is recorded, and every later use is checked against that record.
"""

import hashlib
import json
import os
import urllib.parse
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from filelock import FileLock

from vssm._writing import replacing
from vssm.weights.transfer import MAX_BYTES, DownloadError, Partial, fetch

__all__ = ["OFFLINE", "RECORD", "DownloadError", "cached_path", "default_cache", "download", "is_offline", "sha256"]

RECORD = "sha256.json"
OFFLINE = ("VSSM_OFFLINE", "HF_HUB_OFFLINE")


def is_offline() -> str | None:
    """The environment variable that forbids downloads, if one is set (to anything but 0, no, off or false)."""
    return next(
        (name for name in OFFLINE if os.environ.get(name, "").lower() not in ("", "0", "no", "off", "false")), None
    )


def default_cache() -> Path:
    """`torch.hub`'s checkpoints folder; TORCH_HOME moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_path(url: str, cache_dir: str | Path | None = None) -> Path:
    """Where the copy of `url` is, or would be."""
    # A release tag is part of the address and two releases may hold files of one name.
    parts = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 2)
    name = "-".join(part.lstrip("#") for part in parts[-2:] if part)
    return (Path(cache_dir) if cache_dir else default_cache()) / name


def download(
    url: str,
    cache_dir: str | Path | None = None,
    expected: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    max_bytes: int | None = None,
) -> Path:
    """The local copy of `url`, fetched if it is not there, and continued where an earlier download was interrupted.

    Args:
        url: http(s) address of a file.
        cache_dir: where copies live; `default_cache()` when not given.
        expected: SHA-256 that the file must have; when None, that which the server or the record states, if any.
        progress: called with (bytes so far, bytes in all or None).
        max_bytes: refuse a larger file; 16 GiB when not given.

    Raises:
        DownloadError: the server fails, the file ends early or is too large, downloads are forbidden (VSSM_OFFLINE,
            HF_HUB_OFFLINE), or the file has another SHA-256. No file of an earlier download is removed or changed.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url} is not an http(s) address; load a local file with load_checkpoint")
    target = cached_path(url, cache_dir)
    if not target.exists():
        if forbidden := is_offline():
            raise DownloadError(
                f"{target.name} is not in the cache, and {forbidden} forbids downloads; fetch {url} on another machine "
                f"and put it there as {target}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Partial(target)
        with FileLock(partial.lock):
            if not target.exists():  # another process may have fetched it while this one waited
                fetch(url, partial, expected, progress, MAX_BYTES if max_bytes is None else max_bytes)
                partial.become(target)
    _check_record(url, target, expected)
    return target


def _check_record(url: str, target: Path, expected: str | None) -> None:
    found = sha256(target)
    if expected is not None and found != expected:
        raise DownloadError(
            f"{target} has SHA-256 {found}, but its publisher states {expected}; it was left where it is: move it away "
            "and try again"
        )
    with _locked_record(target.parent / RECORD) as known:
        recorded = known.setdefault(target.name, {"sha256": found, "url": url})["sha256"]
    if found != recorded:
        raise DownloadError(
            f"{target} has SHA-256 {found}, but {recorded} was recorded when it was first downloaded; it was left "
            f"where it is: move it away and try again, or remove its entry in {target.parent / RECORD} if you want the "
            "changed file"
        )


@contextmanager
def _locked_record(record: Path):
    """The entries of the record, written back where something was added; one process at a time."""
    with FileLock(record.with_name(f".{record.name}.lock")):
        before = record.read_text(encoding="utf-8") if record.exists() else "{}"
        try:
            known = cast(dict[str, dict[str, str]], json.loads(before))
        except json.JSONDecodeError as error:
            raise DownloadError(
                f"{record} is damaged ({error}); remove it, and the hashes are recorded again"
            ) from error
        yield known
        after = json.dumps(known, indent=1, sort_keys=True) + "\n"
        if after != before:
            with replacing(record) as new:
                new.write_text(after, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
