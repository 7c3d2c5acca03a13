"""Suggestions for unknown words, and strangers' words in messages. Standard library only."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """`; nearest: a, b` for the known words that look like `word`, else `otherwise`."""
    found = difflib.get_close_matches(word, sorted(set(known)), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(found)}" if found else otherwise


def printable(text: str) -> str:
    """`text` on one line that does nothing to a terminal: what cannot be printed becomes backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
