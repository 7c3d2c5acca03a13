"""The demo's picture: learning curves of the models, and the digits that they read wrongly."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vssm._plot_style import COLORS, FAINT, INK, QUIET, STYLE
from vssm.train.demo import DemoResult, ReadDigit

SHOWN = 8


def draw(results: Sequence[DemoResult], target: float, path: Path) -> None:
    """Writes a PNG: training loss and test error over the epochs, below them a row of misread digits per model."""
    with plt.rc_context(STYLE):
        rows = len(results)
        figure = plt.figure(figsize=(11, 4.4 + 2.0 * rows), dpi=130)
        grid = figure.add_gridspec(
            1 + rows,
            1,
            height_ratios=[3.1] + [1.35] * rows,
            left=0.07,
            right=0.975,
            top=0.87,
            bottom=0.035,
            hspace=0.6,
        )
        figure.suptitle(
            "Reading handwritten digits with state space models", x=0.07, y=0.975, ha="left", size=16, weight="bold"
        )
        figure.text(
            0.07,
            0.925,
            "1797 scans, 80 % to train on, 20 % to test; every figure is of the test digits unless it says training",
            size=10,
            color=QUIET,
        )
        top = GridSpecFromSubplotSpec(1, 2, grid[0], wspace=0.2)
        _draw_loss(figure.add_subplot(top[0]), results)
        _draw_error(figure.add_subplot(top[1]), results, target)
        for row, (result, color) in enumerate(zip(results, COLORS, strict=False), start=1):
            _draw_hardest(figure, grid[row], result, color)
        buffer = io.BytesIO()
        figure.savefig(buffer)
        plt.close(figure)
    # A palette of 256 colours is enough for it, and less than half of the bytes.
    Image.open(buffer).convert("RGB").quantize(256).save(path, "PNG", optimize=True)


def _curve(result: DemoResult, column: str) -> tuple[list[float], list[float]]:
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


def _draw_loss(axes: Axes, results: Sequence[DemoResult]) -> None:
    for result, color in zip(results, COLORS, strict=False):
        epochs, losses = _curve(result, "train_loss")
        axes.plot(epochs, losses, color=color, alpha=0.22, linewidth=0.8)
        axes.plot(epochs, _smoothed(losses), color=color, linewidth=1.8)
        epochs, losses = _curve(result, "val_loss")
        axes.plot(epochs, losses, color=color, linewidth=1.6, linestyle=(0, (4, 2)))
    axes.plot([], [], color=INK, label="training (label smoothing 0.1)")
    axes.plot([], [], color=INK, linestyle=(0, (4, 2)), label="test")
    axes.set_title("Cross entropy", loc="left", size=11, weight="bold")
    axes.set_ylim(bottom=0)
    _count_epochs(axes)
    axes.legend(frameon=False)


def _draw_error(axes: Axes, results: Sequence[DemoResult], target: float) -> None:
    for result, color in zip(results, COLORS, strict=False):
        epochs, accuracy = _curve(result, "val_top1")
        errors = [max(100 * (1 - value), 0.21) for value in accuracy]
        label = f"{result.model}: {result.accuracy:.1%} right"
        axes.plot(epochs, errors, color=color, linewidth=1.8, marker="o", markersize=3, label=label)
    axes.axhline(100 * (1 - target), color=FAINT, linewidth=1, linestyle=":")
    axes.text(0, 100 * (1 - target) * 1.06, f" goal: {target:.0%} right", color=QUIET, size=9)
    axes.set_title("Test digits read wrongly", loc="left", size=11, weight="bold")
    axes.set_yscale("log")
    _count_epochs(axes)
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    axes.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.set_ylim(0.2, 110)
    axes.minorticks_off()
    axes.legend(frameon=False, loc="upper right")


def _count_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_hardest(figure: Figure, place: SubplotSpec, result: DemoResult, color: str) -> None:
    """The misread digits; what room is left goes to those that were read rightly with the least confidence."""
    wrong = result.wrong[:SHOWN]
    filled = [*wrong, *result.unsure[: SHOWN - len(wrong)]]
    title = f"{result.model}: {len(result.wrong)} of {result.tested} read wrongly"
    if len(result.wrong) > SHOWN:
        title += f", the {SHOWN} it was surest of"
    elif len(filled) > len(wrong):
        title += "; read rightly, but least surely, the " + ("others" if wrong else "following")
    header = figure.add_subplot(place)
    header.set_axis_off()
    header.set_title(title, loc="left", size=11, weight="bold", color=color, pad=20)
    cells = GridSpecFromSubplotSpec(1, SHOWN, place, wspace=0.25)
    for column, digit in enumerate(filled):
        _draw_digit(figure.add_subplot(cells[column]), digit, color)


def _draw_digit(axes: Axes, digit: ReadDigit, color: str) -> None:
    wrong = digit.read != digit.truth
    axes.imshow(1 - digit.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=color if wrong else FAINT, linewidth=2 if wrong else 0.8)
    caption = f"{digit.truth} read as {digit.read}" if wrong else f"{digit.truth}, right"
    axes.set_title(caption, size=9.5, pad=4, color=INK if wrong else QUIET, weight="bold" if wrong else "normal")
    axes.set_xlabel(f"{digit.confidence:.0%} sure", size=8.5, color=QUIET, labelpad=3)
