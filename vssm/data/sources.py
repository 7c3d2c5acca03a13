"""From what a user names (files, folders, patterns, lists of names) to image files, one at a time."""

import codecs
import glob
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from vssm.data.files import image_files
from vssm.data.image import StoredImage, UnreadableImage
from vssm.data.stored import stored_images
from vssm.data.video import Frame, frames, is_video

__all__ = ["ListedName", "find_files", "find_frames", "listed_names"]


def find_files(names: Iterable[str]) -> Iterator[Path | UnreadableImage | StoredImage]:
    """The files that `names` stand for, in order, found as they are asked for.

    A folder is searched by `image_files`; of shards, also at a URL, and of parquet files come the images in them. What
    does not exist and has *, ? or [ in it is a pattern; ** stands for any number of folders. Anything else is a file,
    there or not. What leads nowhere, a pattern without a match or a folder that cannot be listed, comes as an
    UnreadableImage instead.
    """
    for name in names:
        if isinstance(name, ListedName) and not glob.has_magic(name) and not os.path.lexists(name):
            yield _not_found(name, "No such file or directory")
            continue
        if os.path.lexists(name) or not glob.has_magic(name):
            yield from _files_of(name)
            continue
        empty = True
        for match in _matches(name):
            empty = False
            yield from _files_of(match)
        if empty:
            yield _not_found(name, "no file matches this pattern")


def find_frames(names: Iterable[str], every: int = 1) -> Iterator[Path | UnreadableImage | StoredImage | Frame]:
    """`find_files`, but of a video that is named or matches a pattern come its frames, each `every`-th.

    Folders are searched for images only, and an animation (GIF, WebP) in one is its first frame, as in training.
    """
    for name in names:
        in_folder = os.path.isdir(name)  # noqa: PTH112
        for file in find_files([name]):
            if not in_folder and isinstance(file, Path) and is_video(file):
                yield from frames(file, every)
            else:
                yield file


class ListedName(str):
    """A name from a list, and the number of its line there, from 1."""

    line: int


def listed_names(lines: BinaryIO) -> Iterator[ListedName]:
    """One name per line, empty lines left out: in the file system's encoding, or in UTF-8 or UTF-16 with their mark.

    A list of Windows in UTF-16 is known without its mark, too. Lines may end in LF, CRLF or CR, but a name with a CR
    in it that is there is that name. Raises ValueError for a zero byte, which no name can have, and damaged UTF-16.
    """
    number = 0
    for line in _lines(lines):
        text = line.removesuffix("\n").removesuffix("\r")
        for name in [text] if "\r" not in text or os.path.lexists(text) else text.split("\r"):
            number += 1
            if "\0" in name:
                raise ValueError(f"line {number} of the list has a zero byte; write one name per line")
            if name:
                listed = ListedName(name)
                listed.line = number
                yield listed


def _lines(lines: BinaryIO) -> Iterator[str]:
    """The text of a list, line by line as it arrives; at once for UTF-16, whose lines end in two bytes."""
    first = lines.readline()
    encoding = _utf16(first)
    if encoding is not None:
        try:
            yield from (first + lines.read()).decode(encoding).removeprefix("\ufeff").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"the list is damaged UTF-16 ({error}); save it as UTF-8") from error
        return
    yield os.fsdecode(first.removeprefix(codecs.BOM_UTF8))
    yield from map(os.fsdecode, lines)


def _utf16(first: bytes) -> str | None:
    """The byte order of text in UTF-16, by its mark or by every other byte being zero; None for other text."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16-le" if first.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    even, odd = first[::2].count(0), first[1::2].count(0)
    if max(even, odd) * 4 > len(first):  # half of the half: names of other alphabets have folders and suffixes, too
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def _until_error(name: str, found: Iterator[StoredImage]) -> Iterator[StoredImage | UnreadableImage]:
    try:
        yield from found
    except (OSError, ValueError) as error:
        yield _not_found(name, str(error))


def _not_found(name: str, reason: str) -> UnreadableImage:
    line = f" (line {name.line} of the list)" if isinstance(name, ListedName) else ""
    return UnreadableImage(name, reason + line)


def _files_of(name: str) -> Iterator[Path | UnreadableImage | StoredImage]:
    stored = stored_images(name)
    if stored is not None:
        yield from _until_error(name, stored)
        return
    if not os.path.isdir(name):  # noqa: PTH112 (a Path per file would cost as much as the search)
        yield Path(name)
        return
    failed: list[OSError] = []
    for path in image_files(name, failed.append):
        yield from _take(failed)
        yield path
    yield from _take(failed)


def _take(failed: list[OSError]) -> Iterator[UnreadableImage]:
    while failed:
        error = failed.pop(0)
        yield UnreadableImage(error.filename, error.strerror or str(error))


def _matches(pattern: str) -> Iterator[str]:
    """Like glob.iglob, but sorted in each folder, and no folder twice: links in a circle end."""
    anchor = Path(pattern).anchor
    return _descend(anchor, Path(pattern).parts[1 if anchor else 0 :], set())


def _descend(folder: str, parts: tuple[str, ...], searched: set[tuple[int, int, int]]) -> Iterator[str]:
    """Paths below `folder` that match `parts`, one per level."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        found = os.stat(folder or ".")  # noqa: PTH116
        key = found.st_dev, found.st_ino, len(parts)
        if key in searched:
            return
        searched.add(key)
        if not rest:
            yield folder or "."
            return
        yield from _descend(folder, rest, searched)
        rest, part = parts, "*"
    names = _names(folder, part) if glob.has_magic(part) else [part]
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118
        if not rest:
            if os.path.lexists(path):
                yield path
        elif os.path.isdir(path):  # noqa: PTH112
            yield from _descend(path, rest, searched)


def _names(folder: str, pattern: str) -> list[str]:
    """What matches in a folder, sorted; names that begin with a dot only if the pattern does."""
    try:
        names = os.listdir(folder or ".")  # noqa: PTH208
    except PermissionError:
        return []
    return sorted(name for name in names if fnmatch(name, pattern) and (name[0] != "." or pattern[0] == "."))
