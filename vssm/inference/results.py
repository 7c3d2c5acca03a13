"""Results of an evaluation in files, image by image: an evaluation that was interrupted goes on where it stopped."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from vssm._writing import replacing
from vssm.data.batches import Batch
from vssm.tasks.task import ResultsWriter

__all__ = ["StoredResults"]


class StoredResults:
    """What an evaluation finds in each image, as `Metrics.rows` has it, and the file that is made of it at the end.

    While it grows, the results of each image are a line of FILE.partial, which an evaluation of the same kind takes up
    again. `about` has what must be the same for that, by name; `write` makes FILE. Raises ValueError when FILE.partial
    is of another evaluation, naming what differs.
    """

    def __init__(self, file: Path, about: dict[str, Any], write: ResultsWriter):
        self.file, self.partial, self._write = file, file.with_name(f"{file.name}.partial"), write
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder; --results takes the json to write")
        if not file.parent.is_dir():
            raise FileNotFoundError(f"{file.parent} does not exist; results are written into an existing folder")
        self.done = self._read(about) if self.partial.exists() else dict[int, Any]()
        if not self.done:
            self.partial.write_text(json.dumps(about) + "\n", encoding="utf-8")

    def stored(self, batch: Batch) -> Sequence[Any] | None:
        """The rows for a batch as an earlier, interrupted evaluation left them; None when those of an image are
        missing."""
        indices = cast(list[int], cast(Any, batch.indices).tolist())
        return [self.done[index] for index in indices] if all(index in self.done for index in indices) else None

    def write(self, batch: Batch, rows: Sequence[Any]) -> None:
        """`rows`: those of each image of the batch; what is there already is not written again."""
        indices = cast(list[int], cast(Any, batch.indices).tolist())
        lines = [
            json.dumps({"index": index, "results": found})
            for index, found in zip(indices, rows, strict=True)
            if index not in self.done
        ]
        with self.partial.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in lines))

    def finish(self) -> None:
        """All images are done: the file takes its place, and FILE.partial goes."""
        with replacing(self.file) as new, new.open("w", encoding="utf-8") as stream:
            self._write(stream, self._images())
        self.partial.unlink()

    def _images(self) -> Iterator[Any]:
        with self.partial.open("rb") as lines:
            next(lines)
            for line in lines:
                yield json.loads(line)["results"]

    def _read(self, about: dict[str, Any]) -> dict[int, Any]:
        """Whole lines; a last one that a killed process left unfinished is cut off."""
        with self.partial.open("rb") as stream:
            lines = stream.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        try:
            first: Any = json.loads(whole[0]) if whole else None
            entries = [cast(dict[str, Any], json.loads(line)) for line in whole[1:]]
            found = {int(entry["index"]): entry["results"] for entry in entries}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.partial} is damaged ({error}); remove it to start again") from error
        if differing := _differing(first, json.loads(json.dumps(about))):
            raise ValueError(
                f"{self.partial} is of an evaluation with other {', '.join(differing)}; repeat that one to go on, or "
                "remove the file to start again"
            )
        if len(whole) < len(lines):
            with replacing(self.partial) as new:
                new.write_bytes(b"".join(whole))
        return found


def _differing(first: Any, about: dict[str, Any]) -> list[str]:
    known = cast(dict[str, Any], first) if isinstance(first, dict) else dict[str, Any]()
    return [name for name in about | known if name not in known or name not in about or known[name] != about[name]]
