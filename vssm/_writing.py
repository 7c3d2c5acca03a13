"""Files that are written whole or not at all. Standard library only."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what is written there takes its place only when all went well.

    A process that dies, or a disk that fills up, inside the block leaves the old file as it was. After the block the
    file and its name are on the disk, so that a power failure does not undo it. OSErrors name `path`.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with naming(path, new):
            yield new
            sync(new)
            new.replace(path)
            sync_folder(path.parent)
    finally:
        new.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the content of a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system has a way to ask for it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An OSError that does not know its file, as that of a full disk, or knows it as `temporary`, gets this name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and str(error.filename) != str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
