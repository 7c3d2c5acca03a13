"""The demo's picture: learning curves of the models, and the digits that they read wrongly."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from matplotlib.ticker import MaxNLocator

from vssm.figures.style import COLORS, FAINT, INK, QUIET, drawing, heading, title

SHOWN = 8
WIDTH, LEFT = 11, 0.77


class Digit(Protocol):
    """A test image (H, W) in 0..1, its class, the predicted class, and the confidence in 0..1."""

    @property
    def image(self) -> np.ndarray: ...
    @property
    def truth(self) -> int: ...
    @property
    def read(self) -> int: ...
    @property
    def confidence(self) -> float: ...


class Result(Protocol):
    """A trained model on the test digits.

    wrong: misread digits, most confident first. unsure: correctly read ones, least confident first. curves: the rows of
    metrics.csv.
    """

    @property
    def model(self) -> str: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def tested(self) -> int: ...
    @property
    def wrong(self) -> Sequence[Digit]: ...
    @property
    def unsure(self) -> Sequence[Digit]: ...
    @property
    def curves(self) -> Sequence[Mapping[str, str]]: ...


def draw(results: Sequence[Result], target: float, path: Path) -> None:
    """Writes a PNG: training loss and test error over the epochs, below them a row of misread digits per model."""
    rows = len(results)
    with drawing(path, (WIDTH, 4.4 + 2.0 * rows), colors=256) as figure:
        title(
            figure,
            "Reading handwritten digits with state space models",
            "1797 scans, 80 % to train on, 20 % to test; every figure is of the test digits unless it says training",
            LEFT,
        )
        grid = figure.add_gridspec(
            1 + rows,
            1,
            height_ratios=[3.1] + [1.35] * rows,
            left=LEFT / WIDTH,
            right=0.975,
            top=0.855,
            bottom=0.035,
            hspace=0.6,
        )
        top = GridSpecFromSubplotSpec(1, 2, grid[0], wspace=0.2)
        _draw_loss(figure.add_subplot(top[0]), results)
        _draw_error(figure.add_subplot(top[1]), results, target)
        for row, (result, color) in enumerate(zip(results, COLORS, strict=False), start=1):
            _draw_hardest(figure, grid[row], result, color)


def _curve(result: Result, column: str) -> tuple[list[float], list[float]]:
    """A column of metrics.csv against the epoch as a fraction: steps over the steps of one epoch."""
    per_epoch = max(int(row["step"]) / int(row["epoch"]) for row in result.curves if row["val_top1"])
    rows = [row for row in result.curves if row[column]]
    return [int(row["step"]) / per_epoch for row in rows], [float(row[column]) for row in rows]


def _smoothed(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential running mean, corrected for its start."""
    total, norm, out = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        out.append(total / norm)
    return out


def _draw_loss(axes: Axes, results: Sequence[Result]) -> None:
    for result, color in zip(results, COLORS, strict=False):
        epochs, losses = _curve(result, "train_loss")
        axes.plot(epochs, losses, color=color, alpha=0.22, linewidth=0.8)
        axes.plot(epochs, _smoothed(losses), color=color, linewidth=1.8)
        epochs, losses = _curve(result, "val_loss")
        axes.plot(epochs, losses, color=color, linewidth=1.6, linestyle=(0, (4, 2)))
    axes.plot([], [], color=INK, label="training (label smoothing 0.1)")
    axes.plot([], [], color=INK, linestyle=(0, (4, 2)), label="test")
    heading(axes, "Cross entropy")
    axes.set_ylim(bottom=0)
    _count_epochs(axes)
    axes.legend()


def _draw_error(axes: Axes, results: Sequence[Result], target: float) -> None:
    for result, color in zip(results, COLORS, strict=False):
        epochs, accuracy = _curve(result, "val_top1")
        errors = [max(100 * (1 - value), 0.21) for value in accuracy]
        label = f"{result.model}: {result.accuracy:.1%} right"
        axes.plot(epochs, errors, color=color, linewidth=1.8, marker="o", markersize=3, label=label)
    axes.axhline(100 * (1 - target), color=FAINT, linewidth=1, linestyle=":")
    axes.text(0, 100 * (1 - target) * 1.06, f" goal: {target:.0%} right", color=QUIET, size=9)
    heading(axes, "Test digits read wrongly")
    axes.set_yscale("log")
    _count_epochs(axes)
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    axes.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.set_ylim(0.2, 110)
    axes.minorticks_off()
    axes.legend(loc="upper right")


def _count_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_hardest(figure: Figure, place: SubplotSpec, result: Result, color: str) -> None:
    """The misread digits; what room is left goes to those that were read correctly with the lowest confidence."""
    wrong = result.wrong[:SHOWN]
    filled = [*wrong, *result.unsure[: SHOWN - len(wrong)]]
    text = f"{result.model}: {len(result.wrong)} of {result.tested} read wrongly"
    if len(result.wrong) > SHOWN:
        text += f", the {SHOWN} most confident"
    elif len(filled) > len(wrong):
        text += "; correct, with the lowest confidence: the " + ("others" if wrong else "following")
    header = figure.add_subplot(place)
    header.set_axis_off()
    heading(header, text, color=color, pad=20)
    cells = GridSpecFromSubplotSpec(1, SHOWN, place, wspace=0.25)
    for column, digit in enumerate(filled):
        _draw_digit(figure.add_subplot(cells[column]), digit, color)


def _draw_digit(axes: Axes, digit: Digit, color: str) -> None:
    wrong = digit.read != digit.truth
    axes.imshow(1 - digit.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=color if wrong else FAINT, linewidth=2 if wrong else 0.8)
    caption = f"{digit.truth} read as {digit.read}" if wrong else f"{digit.truth}, right"
    axes.set_title(caption, size=9.5, pad=4, color=INK if wrong else QUIET, weight="bold" if wrong else "normal")
    axes.set_xlabel(f"confidence {digit.confidence:.0%}", size=8.5, color=QUIET, labelpad=3)
