"""Fetching a published file once, and noticing when it changes.

The authors publish no checksums. So the SHA-256 of a file is recorded when it first arrives, in `sha256.json` beside
it, and every later use is checked against that record.
"""

import hashlib
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import torch

from vssm._writing import replacing

__all__ = ["CHUNK", "MAX_BYTES", "RECORD", "TIMEOUT_S", "DownloadError", "download", "sha256"]

RECORD = "sha256.json"
TIMEOUT_S = 30
CHUNK = 1 << 20
MAX_BYTES = 16 << 30


class DownloadError(RuntimeError):
    """A published file could not be fetched, or is no longer the file it was."""


def download(url: str, cache_dir: str | Path | None = None) -> Path:
    """The local copy of `url`, fetched if it is not there.

    Args:
        url: http(s) address of a file.
        cache_dir: where copies live; default `torch.hub`'s checkpoints folder.

    Raises:
        DownloadError: the server fails, the file ends early, or the copy differs from its recorded SHA-256.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url} is not an http(s) address; load a local file with load_checkpoint")
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    # A release tag is part of the address and two releases may hold files of one name.
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 2)
    target = folder / "-".join(part.lstrip("#") for part in name[-2:] if part)
    if not target.exists():
        _fetch(url, target)
    _check_record(url, target)
    return target


def _fetch(url: str, target: Path) -> None:
    """A broken download leaves nothing behind."""
    try:
        with replacing(target) as new:
            with new.open("wb") as out, urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                expected = response.headers.get("Content-Length")
                received = 0
                while chunk := response.read(CHUNK):
                    out.write(chunk)
                    received += len(chunk)
                    if received > MAX_BYTES:
                        raise DownloadError(f"{url} is larger than {MAX_BYTES} bytes; these models are not")
            if expected is not None and received != int(expected):
                raise DownloadError(f"{url} ended after {received} of {expected} bytes; try again")
    except (OSError, urllib.error.URLError) as error:
        raise DownloadError(f"cannot download {url}: {error}; check the network, or fetch the file by hand") from error


def _check_record(url: str, target: Path) -> None:
    record = target.parent / RECORD
    try:
        known: dict[str, dict[str, str]] = json.loads(record.read_text()) if record.exists() else {}
    except json.JSONDecodeError as error:
        raise DownloadError(f"{record} is damaged ({error}); delete it, and the hashes are recorded again") from error
    found = sha256(target)
    expected = known.setdefault(target.name, {"sha256": found, "url": url})["sha256"]
    if found != expected:
        raise DownloadError(
            f"{target} has SHA-256 {found}, but {expected} was recorded when it was first downloaded; delete the file "
            f"and try again, or its entry in {record} if the change is wanted"
        )
    with replacing(record) as new:
        new.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
