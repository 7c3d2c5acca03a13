"""Finding image files, and showing their names."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vssm._words import printable

__all__ = ["IMAGE_SUFFIXES", "has_image_suffix", "image_files", "plain_name", "printable_name"]

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def image_files(folder: str | Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Every file below `folder` with the suffix of an image, in the order of sorted paths, found as it is asked for.

    Names that begin with a dot are left out. Linked folders are searched too, but no folder twice: links in a circle
    end, and add no duplicates. Memory grows with the number of folders and the names in one, not with all files.

    A folder that cannot be listed goes to `on_error`, and the search goes on; without it the OSError is raised.
    """
    searched: set[tuple[int, int]] = set()

    def listing(folder: str) -> Iterator[tuple[str, bool]]:
        """(path, is it a folder) of what is in `folder`; nothing where the search has been before."""
        try:
            found = Path(folder).stat()
            identity = found.st_dev, found.st_ino
            if identity in searched:
                return iter(())
            searched.add(identity)
            names, folders = _names(folder)
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
            return iter(())
        return ((os.path.join(folder, name), name in folders) for name in names)  # noqa: PTH118 (quicker than a Path)

    open_folders = [listing(os.fspath(folder))]
    while open_folders:
        for path, is_folder in open_folders[-1]:
            if is_folder:
                open_folders.append(listing(path))
                break
            yield Path(path)
        else:
            open_folders.pop()


def _names(folder: str) -> tuple[list[str], set[str]]:
    """The sorted names of the images and folders in a folder, and which of them are folders."""
    names, folders = list[str](), set[str]()
    with os.scandir(folder) as listing:
        for entry in listing:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.add(entry.name)
            elif not has_image_suffix(entry.name):
                continue
            names.append(entry.name)
    return sorted(names), folders


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
    return printable(plain_name(path))
