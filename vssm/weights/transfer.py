"""One file over http: in pieces, continued with Range where it was interrupted, bounded, hashed on its way."""

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

__all__ = ["CHUNK", "MAX_BYTES", "TIMEOUT_S", "DownloadError", "Partial", "fetch"]

TIMEOUT_S = 30
CHUNK = 1 << 20
MAX_BYTES = 16 << 30
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class DownloadError(RuntimeError):
    """A published file could not be fetched, or is no longer the file it was."""


@dataclass(frozen=True)
class Partial:
    """What is there of a file that is being fetched, beside where it will be; and which file of the server it is of."""

    target: Path

    @property
    def data(self) -> Path:
        return self.target.with_name(f".{self.target.name}.part")

    @property
    def about(self) -> Path:
        return self.target.with_name(f".{self.target.name}.part.json")

    @property
    def lock(self) -> Path:
        return self.target.with_name(f".{self.target.name}.lock")

    def validator(self, url: str) -> str | None:
        """What the server called this very file (ETag or Last-Modified); None where it cannot be continued."""
        if not self.data.exists() or not self.about.exists():
            return None
        try:
            about = cast(dict[str, Any], json.loads(self.about.read_text(encoding="utf-8")))
        except json.JSONDecodeError:
            return None  # the process died while it wrote this: begin again
        return about.get("validator") if about.get("url") == url else None

    def describe(self, url: str, validator: str | None) -> None:
        self.about.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")

    def discard(self) -> None:
        self.data.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def become(self, target: Path) -> None:
        self.data.replace(target)
        self.about.unlink(missing_ok=True)


def fetch(
    url: str,
    partial: Partial,
    expected: str | None,
    progress: Callable[[int, int | None], None] | None,
    max_bytes: int,
) -> None:
    """Fills `partial.data` with the whole file. Raises DownloadError; what can be continued later is kept."""
    try:
        stated, total, received, digest = _receive(url, partial, progress, max_bytes)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        kept = partial.validator(url) is not None
        if not kept:
            partial.discard()
        remedy = "try again, and it goes on there" if kept else "check the network, or fetch the file by hand"
        raise DownloadError(f"cannot download {url}: {error}; {remedy}") from error
    if total is not None and received != total:
        kept = received < total and partial.validator(url) is not None
        if not kept:
            partial.discard()
        goes_on = ", and it goes on there" if kept else ""
        raise DownloadError(f"{url} ended after {received} of {total} bytes; try again{goes_on}")
    wanted = expected or stated
    if wanted is not None and digest != wanted:
        partial.discard()
        raise DownloadError(
            f"{url} has SHA-256 {digest}, but its publisher states {wanted}; it was not kept, and nothing else was "
            "changed. The file was replaced or damaged on its way: try again, or ask its publisher"
        )


def _receive(
    url: str, partial: Partial, progress: Callable[[int, int | None], None] | None, max_bytes: int
) -> tuple[str | None, int | None, int, str]:
    """(hash that the server states, size that it states, bytes that are there, their hash)."""
    redirects = _Redirects()
    validator = partial.validator(url)
    have = partial.data.stat().st_size if validator is not None else 0
    request = urllib.request.Request(url)
    if have and validator is not None:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # nothing is left to fetch
            return redirects.stated, have, have, _digest(partial.data, have).hexdigest()
        partial.discard()
        return _receive(url, partial, progress, max_bytes)
    with response:
        begin, total = _extent(response, have)
        if total is not None and total > max_bytes:
            partial.discard()
            raise DownloadError(f"{url} is larger than {max_bytes} bytes (it has {total}); these models are not")
        if begin == 0:
            partial.describe(url, _validator(response.headers))
        digest, received = _digest(partial.data, begin), begin
        with partial.data.open("r+b" if begin else "wb") as out:
            out.seek(begin)
            while chunk := response.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                if received > max_bytes:
                    partial.discard()
                    raise DownloadError(f"{url} is larger than {max_bytes} bytes; these models are not")
                if progress is not None:
                    progress(received, total)
            out.flush()
            os.fsync(out.fileno())
        return redirects.stated, total, received, digest.hexdigest()


def _extent(response: Any, have: int) -> tuple[int, int | None]:
    """Where the answer begins in the file, and the size of the file."""
    if response.status == 206:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise OSError(f"the server answers with another range than bytes {have}-")
        return have, int(found[3])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length is not None and length.isdigit() else None


def _validator(headers: Message) -> str | None:
    """A strong ETag, else the date; If-Range takes no weak ETag."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _digest(file: Path, size: int) -> Any:
    """Of the first `size` bytes that are there already."""
    digest = hashlib.sha256()
    if size:
        with file.open("rb") as there:
            while size > 0 and (chunk := there.read(min(CHUNK, size))):
                digest.update(chunk)
                size -= len(chunk)
    return digest


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the SHA-256 that Hugging Face states in that of a large file (X-Linked-ETag)."""

    stated: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        found = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag") or "")
        if found:
            self.stated = found[1]
        return super().redirect_request(req, fp, code, msg, headers, newurl)
