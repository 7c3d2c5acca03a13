"""The one error of every weights file that cannot be used."""

from vssm._words import printable

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or not one of this model. The model is left as it was.

    What a file has in its names does nothing to a terminal: control characters become backslash escapes.
    """

    def __init__(self, message: str):
        super().__init__("\n".join(map(printable, message.split("\n"))))
