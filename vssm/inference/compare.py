"""Two models on the same images: where they agree, and where they differ most."""

import heapq
import itertools
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vssm._words import same_names, spelled
from vssm.data.image import StoredImage, UnreadableImage
from vssm.inference.predict import Prediction, predict
from vssm.inference.predictor import Predictor


@dataclass(frozen=True)
class Pair:
    """The predictions of two models for one image. When one of them has an error, `agree` means nothing."""

    first: Prediction
    second: Prediction

    @property
    def path(self) -> Path:
        return self.first.path

    @property
    def error(self) -> str | None:
        return self.first.error or self.second.error

    @property
    def agree(self) -> bool:
        """Whether the most probable classes have the same name."""
        return same_names([self.first.classes[0][0]], [self.second.classes[0][0]])

    @property
    def interest(self) -> tuple[bool, float]:
        """How much it deserves a look: first what they differ on, most of all where both are confident; then what
        they agree on with very different probability."""
        p, q = self.first.classes[0][1], self.second.classes[0][1]
        return (False, abs(p - q)) if self.agree else (True, min(p, q))


def compare(
    first: Predictor,
    second: Predictor,
    files: Iterable[Path | UnreadableImage | StoredImage],
    top_k: int = 3,
    batch_size: int = 32,
    threads: int | None = None,
) -> Generator[Pair, None, None]:
    """Yields a Pair per file, in order. Each model reads the file its own way, as it was trained."""
    found = [
        predict(one.model, one.preprocess, one.classes, part, top_k, batch_size, threads)
        for one, part in zip((first, second), itertools.tee(files), strict=True)
    ]
    with closing(found[0]), closing(found[1]):
        for pair in zip(*found, strict=True):
            yield Pair(*pair)


class Tally:
    """Counts pairs, and keeps the `kept` that deserve most to be looked at."""

    def __init__(self, kept: int):
        self.kept = kept
        self.images = self.agreed = self.failed = 0
        self._heap: list[tuple[tuple[bool, float], int, Pair]] = []

    def add(self, pair: Pair) -> None:
        if pair.error is not None:
            self.failed += 1
            return
        self.images += 1
        self.agreed += pair.agree
        entry = pair.interest, -self.images, pair
        if len(self._heap) < self.kept:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    @property
    def agreement(self) -> float:
        """Share of the readable images with the same most probable class."""
        return self.agreed / self.images if self.images else 0.0

    def interesting(self) -> list[Pair]:
        """The most interesting first; the earlier image first among equals."""
        return [pair for *_, pair in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def class_difference(first: Predictor, second: Predictor) -> str | None:
    """A sentence when the models do not know the same classes; the order does not matter, names are compared."""
    names = set(map(spelled, first.classes)), set(map(spelled, second.classes))
    if names[0] == names[1]:
        return None
    common = len(names[0] & names[1])
    return (
        f"the models know different classes: {common} have the same name in both, {len(names[0]) - common} are only in "
        f"the first, {len(names[1]) - common} only in the second; they are compared by name"
    )
