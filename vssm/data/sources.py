"""From what a user names (files, folders, patterns, lists of names) to image files, one at a time."""

import glob
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from vssm.data.files import image_files
from vssm.data.image import UnreadableImage


def find_files(names: Iterable[str]) -> Iterator[Path | UnreadableImage]:
    """The files that `names` stand for, in order, found as they are asked for.

    A folder is searched by `image_files`. What does not exist and has *, ? or [ in it is a pattern; ** stands for any
    number of folders. Anything else is a file, there or not. What leads nowhere, a pattern without a match or a folder
    that cannot be listed, comes as an UnreadableImage in its place.
    """
    for name in names:
        if os.path.lexists(name) or not glob.has_magic(name):
            yield from _files_of(name)
            continue
        empty = True
        for match in _matches(name):
            empty = False
            yield from _files_of(match)
        if empty:
            yield UnreadableImage(name, "no file matches this pattern")


def listed_names(lines: BinaryIO) -> Iterator[str]:
    """One name per line, in the file system's encoding; empty lines are left out."""
    for line in lines:
        name = os.fsdecode(line.rstrip(b"\r\n"))
        if name:
            yield name


def _files_of(name: str) -> Iterator[Path | UnreadableImage]:
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
