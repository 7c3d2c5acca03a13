"""One way to refuse an unknown option: name it, its value, and what would be right."""

from collections.abc import Iterable

__all__ = ["check_choice"]


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """ValueError listing `choices` unless `value` is one of them."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")
