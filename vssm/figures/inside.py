"""Pictures of what happens inside: receptive fields, activation maps, states, matrices; several models side by side.

One colour scale for all panels of a figure. The maps are perceptually uniform and safe for colour-blind readers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vssm.figures.style import DPI, INK, QUIET, drawing

__all__ = ["FIELD", "MAP", "Curve", "Panel", "Row", "draw_panels"]

FIELD, MAP = "magma", "viridis"
# Inches.
SIDE, GAP, LABEL, HEAD, BAR = 2.0, 0.16, 1.3, 0.5, 0.8
STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 10,
    "markeredgecolor": "white",
    "color": "#d62728",
    "linestyle": "",
}
LEAST = 1e-9  # of what a logarithmic axis shows
Array = NDArray[Any]


@dataclass(frozen=True)
class Curve:
    """Lines over distance, in place of a map. lines: (label, values, color, style of the line)."""

    lines: Sequence[tuple[str, Array, str, str]]
    xlabel: str


@dataclass(frozen=True)
class Panel:
    """One cell: a photograph (H, W, 3), a map (h, w) of values from 0 to 1, curves, or nothing.

    star: row and column of the query, in pixels of the shown array. under: a line or two below. arrow: a row of a
    matrix that is pointed at.
    """

    shown: Array | Curve | None
    title: str = ""
    under: str = ""
    star: tuple[float, float] | None = None
    arrow: int | None = None
    power: float = 1.0


@dataclass(frozen=True)
class Row:
    label: str
    panels: Sequence[Panel]
    note: str = ""


def draw_panels(
    rows: Sequence[Row], path: Path, heading: str, caption: str, bar: str, colors: str = MAP, side: float = SIDE
) -> None:
    """Writes the figure: a row for each model, a panel for each view, one colour bar called `bar`, `caption` below.

    PNG, or vectors for .pdf and .svg. Raises OSError when the file cannot be written.
    """
    columns = max(len(row.panels) for row in rows)
    lines = max((panel.under.count("\n") + 1 for row in rows for panel in row.panels if panel.under), default=0)
    below = 0.06 + 0.17 * lines
    width = LABEL + columns * (side + GAP) + BAR
    pitch = side + 0.3 + below
    caption_lines = _wrapped(caption, width)
    height = HEAD + len(rows) * pitch + 0.14 + 0.17 * len(caption_lines)
    with drawing(path, (width, height), DPI, style={"axes.grid": False, "text.parse_math": True}) as figure:
        figure.text(0.12 / width, 1 - 0.34 / height, heading, size=13, weight="bold", parse_math=False)
        for number, row in enumerate(rows):
            top = height - HEAD - number * pitch
            _label(figure, row, top - 0.3 - side / 2)
            for column, panel in enumerate(row.panels):
                left = LABEL + column * (side + GAP)
                inset = 0.3 if isinstance(panel.shown, Curve) else 0.0  # for the numbers beside it
                axes = _axes(figure, left + inset, top - 0.3 - side, side - inset, side)
                _draw(axes, panel, colors)
        _bar(figure, width - BAR + 0.12, 0.2 + 0.17 * len(caption_lines) + below, bar, colors, min(side, height / 2))
        for number, line in enumerate(reversed(caption_lines)):
            y = (0.1 + 0.17 * number) / height
            figure.text(0.12 / width, y, line, size=8.5, color=QUIET, parse_math=False)


def _draw(axes: Axes, panel: Panel, colors: str) -> None:
    axes.set_title(panel.title, loc="left", size=9.5, pad=4)
    shown = panel.shown
    if isinstance(shown, Curve):
        _curve(axes, shown)
        return
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if shown is None:
        axes.text(0.5, 0.5, panel.under, ha="center", va="center", color=QUIET, size=9, transform=axes.transAxes)
        return
    if shown.ndim == 3:
        axes.imshow(shown[..., 0] if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=255)
    else:
        large = max(shown.shape) > 3 * SIDE * DPI
        values = np.clip(shown, 0, None) ** panel.power
        axes.imshow(values, cmap=colors, vmin=0, vmax=1, interpolation="antialiased" if large else "nearest")
    if panel.star is not None:
        axes.plot(panel.star[1], panel.star[0], **STAR)
    if panel.arrow is not None:
        row = panel.arrow
        style = {"arrowstyle": "-|>", "color": "#d62728", "lw": 1.5}
        axes.annotate("", xy=(0, row), xytext=(-0.09 * shown.shape[1], row), arrowprops=style, annotation_clip=False)
    if panel.under:
        axes.set_xlabel(panel.under, size=8.5, loc="left", labelpad=3, color=INK)


def _curve(axes: Axes, curve: Curve) -> None:
    for label, values, color, style in curve.lines:
        axes.plot(np.arange(len(values)), np.maximum(values, LEAST), style, color=color, label=label, lw=1.4)
    least = min(float(values.min()) for _, values, _, _ in curve.lines)
    axes.set_yscale("log")
    axes.set_ylim(max(LEAST, least / 30), 3)  # room for the legend
    axes.set_xlabel(curve.xlabel, size=8.5)
    axes.tick_params(labelsize=7.5, direction="in", pad=2)
    axes.legend(fontsize=7, loc="lower left", handlelength=1.8)


def _label(figure: Figure, row: Row, y: float) -> None:
    width, height = figure.get_size_inches()
    lines = _broken(row.label, 13)
    figure.text(0.12 / width, y / height, "\n".join(lines), size=9.5, weight="bold", va="center", parse_math=False)
    if row.note:
        below = y - 0.085 * len(lines) - 0.05
        note = "\n".join(_broken(row.note, 20, " "))
        figure.text(0.12 / width, below / height, note, size=7.5, color=QUIET, va="top", parse_math=False)


def _bar(figure: Figure, left: float, bottom: float, label: str, colors: str, length: float) -> None:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, 0.13 / width, length / height))
    axes.imshow(np.linspace(1, 0, 256)[:, None], aspect="auto", cmap=colors, extent=(0, 1, 0, 1))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params(labelsize=8, length=2)
    axes.set_ylabel(label, size=8.5)


def _axes(figure: Figure, left: float, bottom: float, wide: float, high: float) -> Axes:
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def _broken(text: str, length: int, behind: str = "_-./ ") -> list[str]:
    """A name in lines of about `length` letters, broken behind these letters."""
    lines = [""]
    for part in _parts(text, behind):
        if lines[-1] and len(lines[-1]) + len(part) > length:
            lines.append("")
        lines[-1] += part
    return lines


def _parts(text: str, behind: str) -> Iterator[str]:
    start = 0
    for at, letter in enumerate(text):
        if letter in behind:
            yield text[start : at + 1]
            start = at + 1
    yield text[start:]


def _wrapped(text: str, width: float) -> list[str]:
    """Lines of at most the figure's width, by a mean letter of 0.066 inches."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > (width - 0.3) / 0.066:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines
