"""Learning curves of runs: losses, and the score that chooses the best checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from vssm.figures.style import COLORS, drawing, heading

__all__ = ["Curves", "draw"]

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curves:
    """Of one run: (step, value) of the losses and of the score; what is not finite is left out."""

    label: str
    train_loss: Points
    val_loss: Points
    score: Points


def draw(runs: Sequence[Curves], score: str, path: Path) -> None:
    """Two panels, with a color for each run; `score` is the name of the right one. Errors as `drawing`."""
    with drawing(path, (10.0, 4.2)) as figure:
        left, right = figure.subplots(1, 2)
        for number, run in enumerate(runs):
            color = COLORS[number % len(COLORS)]
            _line(left, run.train_loss, color, alpha=0.4, linewidth=0.9)
            _line(left, run.val_loss, color, linewidth=1.6, linestyle=(0, (4, 2)))
            _line(right, run.score, color, linewidth=1.6, marker=".", label=run.label)
        heading(left, "Loss (validation dashed)")
        heading(right, score)
        for axes in (left, right):
            axes.set_xlabel("optimizer step")
        if len(runs) > 1:
            right.legend(fontsize=8)
        figure.tight_layout()


def _line(axes: Axes, points: Points, color: str, **style: object) -> None:
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    axes.plot([x for x, _ in finite], [y for _, y in finite], color=color, **style)  # type: ignore[arg-type]
