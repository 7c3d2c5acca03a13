"""What is wrong in a file of annotations: one error for who needs the file, all of it for who asks what is wrong."""

from collections import Counter, defaultdict
from dataclasses import dataclass

__all__ = ["KEPT", "Faults", "Problem"]

# Entries that are kept of each kind of fault; the others are counted.
KEPT = 1000


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in the file, or that a reader should know.

    kind: a short name; text: a sentence with the first entry; entries: each of them, or the first `KEPT` of `count`;
    repair: not fit for training as is
    """

    kind: str
    text: str
    entries: tuple[str, ...]
    repair: bool
    more: int = 0

    @property
    def count(self) -> int:
        return len(self.entries) + self.more


# Faults for which a file cannot be used, in the order in which they are told.
_FAULTS = {
    "json": "json that cannot be read to its end, so that only what stands before was looked at",
    "sections": "lists that are missing, empty, or no lists",
    "images_folder": "folders of images that are not there",
    "bad_image": "images whose entries cannot be used",
    "bad_category": "categories whose entries cannot be used",
    "bad_annotation": "annotations whose entries cannot be used",
    "doubled_image_ids": "images with the id of an earlier one",
    "bad_box": "annotations with a bbox or an area that cannot be",
    "unknown_category": "annotations of categories that are not listed",
    "missing_files": "images whose files are missing",
    "nothing_to_learn": "no object to learn or to evaluate with",
}


class Faults:
    """Faults of the file `name`: the first is raised as a ValueError, unless they are gathered."""

    def __init__(self, name: str, gather: bool = False):
        self.name, self.gather = name, gather
        self._counts: Counter[str] = Counter()
        self._entries: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, text: str) -> None:
        if not self.gather:
            raise ValueError(f"{self.name}: {text}") from None
        self._counts[kind] += 1
        if len(self._entries[kind]) < KEPT:
            self._entries[kind].append(text)

    def problems(self) -> tuple[Problem, ...]:
        found: list[Problem] = []
        for kind, what in _FAULTS.items():
            if count := self._counts[kind]:
                entries = tuple(self._entries[kind])
                text = f"{what}: {count} (first: {entries[0]})"
                found.append(Problem(kind, text, entries, True, count - len(entries)))
        return tuple(found)
