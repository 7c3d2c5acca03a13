"""The names of a file: how they are listed, and two of them that would become one."""

from collections.abc import Mapping, Sequence

from vssm._words import printable
from vssm.weights.errors import CheckpointError

__all__ = ["LONGEST", "SHOWN", "check_distinct", "some"]

SHOWN = 8
LONGEST = 120


def some(names: Sequence[str]) -> str:
    """The first names, in a form that does nothing to a terminal, and how many more there are."""
    shown = ", ".join(printable(name if len(name) <= LONGEST else f"{name[:LONGEST]}...") for name in names[:SHOWN])
    return shown + (f", and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_distinct(renamed: Mapping[str, str], origin: str) -> None:
    """Raises CheckpointError for two old names with the same new one: either could be meant."""
    before: dict[str, str] = {}
    for old, new in renamed.items():
        if new in before:
            raise CheckpointError(
                f"{origin} has {some([before[new]])} beside {some([old])}, and both are {some([new])} here; remove the "
                "one that does not belong to the model"
            )
        before[new] = old
