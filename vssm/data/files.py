"""Finding image files, and showing their names."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def image_files(folder: str | Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Every file below `folder` with the suffix of an image, in the order of sorted paths, found as it is asked for.

    Names that begin with a dot are left out. Linked folders are searched too, but no folder twice: links in a circle
    end, and add no duplicates. Memory grows with the number of folders and with the files of one, not with all files.

    A folder that cannot be listed goes to `on_error`, and the search goes on; without it the OSError is raised.
    """
    searched: set[tuple[int, int]] = set()

    def listing(folder: str) -> Iterator[tuple[str, bool]]:
        try:
            return iter(_sorted_entries(folder, searched))
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
            return iter(())

    open_folders = [listing(os.fspath(folder))]
    while open_folders:
        for path, is_folder in open_folders[-1]:
            if is_folder:
                open_folders.append(listing(path))
                break
            yield Path(path)
        else:
            open_folders.pop()


def _sorted_entries(folder: str, searched: set[tuple[int, int]]) -> list[tuple[str, bool]]:
    """(path, is it a folder) of the images and folders in one folder; nothing for a folder in `searched`."""
    found = Path(folder).stat()
    identity = found.st_dev, found.st_ino
    if identity in searched:
        return []
    searched.add(identity)
    with os.scandir(folder) as listing:
        entries = [(entry.name, entry.path, _is_folder(entry)) for entry in listing if entry.name[0] != "."]
    return [(path, is_folder) for name, path, is_folder in sorted(entries) if is_folder or has_image_suffix(name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: left to whoever opens it to report
        return False


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def plain_name(path: str | Path) -> str:
    """A path as valid Unicode: bytes that are not UTF-8 become backslash escapes, all else stays."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def printable_name(path: str | Path) -> str:
    """A path on one line that does nothing to a terminal: what cannot be printed becomes backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain_name(path))
