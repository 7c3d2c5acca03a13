"""Suggestions for unknown words, and strangers' words in messages. Standard library only."""

import difflib
import unicodedata
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """`; nearest: a, b` for the known words that look like `word`, else `otherwise`."""
    found = difflib.get_close_matches(word, sorted(set(known)), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(found)}" if found else otherwise


def printable(text: str) -> str:
    """`text` on one line that does nothing to a terminal: what cannot be printed becomes backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def spelled(name: str) -> str:
    """`name` in one spelling (NFC), to compare it by: systems write an accented letter as one character or as two."""
    return unicodedata.normalize("NFC", name)


def same_names(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether two sequences hold the same names in the same order, however their accents are written."""
    return [spelled(name) for name in some] == [spelled(name) for name in others]
