"""Locks that the system drops when their process ends. Standard library only."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def lock_file(file: IO[Any]) -> None:
    """An exclusive lock. Raises OSError when another process has it."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(path: Path, refused: str) -> Iterator[None]:
    """Holds a lock on a file that exists inside the block. Raises BlockingIOError(`refused`) when another has it."""
    with path.open("w") as file:
        try:
            lock_file(file)
        except OSError:
            raise BlockingIOError(refused) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
