"""Where predictions go: a table on the screen, lines for a pipe, CSV, JSON lines, pictures; each as it comes.

A line is written at once and whole, so that whatever ends the command leaves valid output.
"""

import contextlib
import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from PIL import Image
from rich.cells import cell_len
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from vssm._writing import replacing
from vssm.data.files import plain_name, printable_name
from vssm.data.image import as_read, open_image
from vssm.data.video import FrameReader
from vssm.inference.predict import Prediction
from vssm.tasks.task import Task

PROBABILITY_WIDTH, GAP = 6, 2


class Writer(Protocol):
    def write(self, prediction: Prediction) -> None: ...


class JsonLines:
    """{"path": ..., "classes": [{"name": ..., "probability": ...}, ...]} (or what else the task finds) or {"path": ...,
    "error": ...} per line; with "video" and "frame" for a frame of a video."""

    def __init__(self, stream: TextIO, task: Task, classes: Sequence[str]):
        self.stream, self.task, self.classes = stream, task, classes

    def write(self, prediction: Prediction) -> None:
        line: dict[str, object] = {"path": plain_name(prediction.path)}
        if prediction.video is not None:
            line |= {"video": plain_name(prediction.video), "frame": prediction.frame}
        if prediction.error is None:
            line |= self.task.plain(prediction.result, self.classes)
        else:
            line["error"] = prediction.error
        self.stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.stream.flush()


def _write_row(stream: TextIO, values: Sequence[object]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    stream.write(text.getvalue())
    stream.flush()


class Csv:
    """Columns path, error, class1, probability1, ..., class{top_k}, probability{top_k}."""

    def __init__(self, stream: TextIO, top_k: int):
        self.stream, self.top_k = stream, top_k
        _write_row(
            self.stream,
            ["path", "error", *(f"{kind}{rank}" for rank in range(1, top_k + 1) for kind in ("class", "probability"))],
        )

    def write(self, prediction: Prediction) -> None:
        values: list[object] = [value for pair in prediction.classes for value in pair]
        values += [""] * (2 * self.top_k - len(values))
        _write_row(self.stream, [plain_name(prediction.path), prediction.error or "", *values])


class ObjectsCsv:
    """Columns path, error, class, score, x, y, width, height: one row per object, one without a class for an image
    without any."""

    def __init__(self, stream: TextIO, task: Task, classes: Sequence[str]):
        self.stream, self.task, self.classes = stream, task, classes
        _write_row(self.stream, ["path", "error", "class", "score", "x", "y", "width", "height"])

    def write(self, prediction: Prediction) -> None:
        path = plain_name(prediction.path)
        found = [] if prediction.error else self.task.plain(prediction.result, self.classes)["objects"]
        for one in found:
            _write_row(self.stream, [path, "", one["name"], one["score"], *one["box"]])
        if not found:
            _write_row(self.stream, [path, prediction.error or "", *[""] * 6])


class Pictures:
    """What was found, drawn on each image: a PNG of its name in a folder, VIDEO_NUMBER.png for a frame of a video; the
    second of a name is NAME-2.png."""

    def __init__(self, folder: Path, task: Task, classes: Sequence[str]):
        self.folder, self.task, self.classes = folder, task, classes
        self.taken: set[Path] = set()
        self.frames = FrameReader()
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, prediction: Prediction) -> None:
        if prediction.error is not None:
            return
        image, stem = self._image(prediction)
        drawn = self.task.draw(image, prediction.result, self.classes)
        name, number = self.folder / f"{stem}.png", 1
        while name in self.taken:
            number += 1
            name = self.folder / f"{stem}-{number}.png"
        self.taken.add(name)
        with replacing(name) as new:
            drawn.save(new, "PNG")

    def _image(self, prediction: Prediction) -> tuple[Image.Image, str]:
        """Frames are decoded a second time: nothing of the size of a video waits in memory for its prediction."""
        if prediction.video is None or prediction.frame is None:
            return open_image(prediction.stored or prediction.path), prediction.path.stem
        found = self.frames.image(prediction.video, prediction.frame)
        return as_read(found, 3, prediction.path), f"{prediction.video.stem}_{prediction.frame:05d}"


class Lines:
    """For a pipe: image, class, probability and what follows, between tabs, nothing folded or cut; of other tasks than
    classification the image and a summary."""

    def __init__(self, stream: TextIO, task: Task, classes: Sequence[str]):
        self.stream, self.task, self.classes = stream, task, classes

    def write(self, prediction: Prediction) -> None:
        if prediction.classes or prediction.error:
            cells = _cells(prediction)
        else:
            cells = (self.task.summary(prediction.result, self.classes),)
        self.stream.write("\t".join([printable_name(prediction.path), *cells]).rstrip("\t") + "\n")
        self.stream.flush()


class Count:
    """A running count on the terminal, when all results go to files."""

    def __init__(self, status: Status):
        self.status = status
        self.done, self.shown = 0, 0.0

    def write(self, prediction: Prediction) -> None:
        self.done += 1
        if time.monotonic() - self.shown > 0.25:
            self.status.update(f"{self.done} images")
            self.shown = time.monotonic()


class Screen:
    """A table on the terminal, whose rows are printed as they come: the widths of the columns are fixed beforehand."""

    def __init__(self, console: Console, classes: Sequence[str]):
        self.console = console
        longest = max(map(cell_len, classes), default=0)
        self.class_width = min(max(longest, len("class")), max(8, console.width // 4))
        remaining = console.width - self.class_width - PROBABILITY_WIDTH - 3 * GAP
        self.image_width = max(12, remaining * 3 // 5)
        self.next_width = max(12, remaining - self.image_width)
        self.table: Table | None = None
        self.printed = 0.0

    def write(self, prediction: Prediction) -> None:
        if self.table is None:
            self.table = self._new_table()
        path = Text(printable_name(prediction.path))
        if prediction.error is None:
            name, probability, others = _cells(prediction)
            following = Text(others, style="dim")
            following.truncate(self.next_width, overflow="ellipsis")
            self.table.add_row(path, Text(name, style="bold"), probability, following)
        else:
            self.table.add_row(path, "", "", Text(prediction.error, style="red"))
        if time.monotonic() - self.printed > 0.1:
            self.flush()

    def flush(self) -> None:
        if self.table is not None:
            self.console.print(self.table)
            self.table, self.printed = None, time.monotonic()

    def _new_table(self) -> Table:
        table = Table(box=None, show_header=self.printed == 0, pad_edge=False, padding=(0, GAP, 0, 0))
        table.add_column("image", width=self.image_width, overflow="fold")
        table.add_column("class", width=self.class_width, no_wrap=True, overflow="ellipsis")
        table.add_column("prob.", width=PROBABILITY_WIDTH, justify="right")
        table.add_column("next", width=self.next_width)
        return table


def _cells(prediction: Prediction) -> tuple[str, str, str]:
    """Best class, its probability, and the others in words; for a failure the reason alone."""
    if prediction.error is not None:
        return f"error: {prediction.error}", "", ""
    (name, probability), *others = prediction.classes
    return name, f"{probability:.1%}", ", ".join(f"{other} {p:.1%}" for other, p in others)


def open_writers(
    csv_file: str | None,
    json_file: str | None,
    pictures: str | None,
    classes: Sequence[str],
    task: Task,
    top_k: int,
    console: Console,
    stack: contextlib.ExitStack,
) -> list[Writer]:
    """CSV, JSON lines and pictures where they were asked for; a table or lines on the standard output else.

    "-" is the standard output. Files are closed, and the table is finished, with `stack`. `console` shows a count when
    all goes to files.
    """
    writers: list[Writer] = []
    if csv_file is not None:
        stream = _open(csv_file, stack)
        by_image = task.name == "classification"
        writers.append(Csv(stream, min(top_k, len(classes))) if by_image else ObjectsCsv(stream, task, classes))
    if json_file is not None:
        writers.append(JsonLines(_open(json_file, stack), task, classes))
    if not writers:
        writers.append(_open_screen(classes, task, stack))
    elif "-" not in (csv_file, json_file):
        writers.append(Count(stack.enter_context(console.status("predicting"))))
    if pictures is not None:
        writers.append(Pictures(Path(pictures), task, classes))
    return writers


def _open_screen(classes: Sequence[str], task: Task, stack: contextlib.ExitStack) -> Writer:
    console = Console()
    if not console.is_terminal or task.name != "classification":
        return Lines(_open("-", stack), task, classes)
    screen = Screen(console, classes)
    stack.callback(screen.flush)
    return screen


def _open(name: str, stack: contextlib.ExitStack) -> TextIO:
    if name != "-":
        return stack.enter_context(open(name, "w", encoding="utf-8", newline=""))  # noqa: PTH123
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale of a pipe: JSON is UTF-8
    return sys.stdout
