"""The error for a part of a model that is not there."""

__all__ = ["NoSuchPart"]


class NoSuchPart(ValueError, IndexError):
    """A block, route, channel, stage, patch or class that a model does not have; the message names those it has."""
