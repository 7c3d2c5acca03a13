"""The error for a part of a model that is not there."""

__all__ = ["NoSuchPart"]


class NoSuchPart(ValueError, IndexError):
    """A block, route, channel, stage or patch that a model does not have; the message names those it has."""
