"""Mamba-Adaptor's adaptors by the settings of a training."""

from collections.abc import Sequence

from torch import nn

from vssm.nn.attach import add_adaptors


def attach_adaptors(model: nn.Module, kinds: Sequence[str]) -> None:
    """Adds the adaptors that `model.adaptors` names, in place: t, s, or none. They change nothing until they train.

    Raises ValueError that names the setting for a model that cannot have them.
    """
    if not kinds:
        return
    try:
        add_adaptors(model, temporal="t" in kinds, spatial="s" in kinds)
    except ValueError as error:
        raise ValueError(f"model.adaptors: {error}") from error
