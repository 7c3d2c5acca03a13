"""Lines that the commands print: as they are, whatever is in a path or a name, and never folded."""

import time

from rich.console import Console
from rich.text import Text


def print_line(console: Console, text: str, style: str = "") -> None:
    """One line; brackets in it are no markup."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def print_note(console: Console, text: str) -> None:
    print_line(console, f"note: {text}")


def print_fact(console: Console, name: str, value: str, width: int = 10) -> None:
    """`name` in bold, filled up to `width`, and its value."""
    console.print(Text(f"{name:<{width}}", style="bold") + Text(value), soft_wrap=True, highlight=False)


def print_speed(console: Console, done: str, failed: int, files: int, began: float) -> None:
    """What was done, how many of `files` could not be read, and files per second since `began` (perf_counter)."""
    problems = f", {failed} of {files} files could not be read" if failed else ""
    print_line(console, f"{done}{problems}, {files / (time.perf_counter() - began):.1f} images/s")
