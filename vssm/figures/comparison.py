"""The figure of a comparison: each image with the predictions of both models."""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vssm.data.files import printable_name
from vssm.data.image import open_image
from vssm.figures.style import ALARM, INK, PAIR, PAIR_TINTS, QUIET, TRACK, drawing, title
from vssm.inference.compare import Pair, Tally
from vssm.inference.predict import Prediction

# Inches.
WIDTH, EXAMPLE_HEIGHT, SIDE = 4.9, 2.15, 1.75
MARGIN, HEADER, GAP, ROW = 0.45, 1.25, 0.3, 0.23
DPI = 110
SHOWN = 24
PIXELS = round(2 * SIDE * DPI)  # twice what is shown, which is then resampled well


def draw(tally: Tally, labels: tuple[str, str], path: Path) -> None:
    """Writes a PNG with the tally's most interesting images, three in a row.

    Each has its top classes by both models as bars. Names that do not fit are cut. Raises OSError when it cannot be
    written, and UnreadableImage when an image has gone since.
    """
    pairs = tally.interesting()[:SHOWN]
    columns = min(3, max(1, len(pairs)))
    rows = math.ceil(len(pairs) / columns)
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP
    height = HEADER + MARGIN + rows * EXAMPLE_HEIGHT
    # Names of files and classes are drawn as they are, also with $ in them.
    with drawing(path, (width, height), DPI, style={"font.size": 9, "text.parse_math": False}) as figure:
        _draw_header(figure, tally, labels, len(pairs))
        for number, pair in enumerate(pairs):
            row, column = divmod(number, columns)
            left = MARGIN + column * (WIDTH + GAP)
            _draw_example(figure, pair, left, top=height - HEADER - row * EXAMPLE_HEIGHT)


def _draw_header(figure: Figure, tally: Tally, labels: tuple[str, str], shown: int) -> None:
    width, height = figure.get_size_inches()
    at = {"va": "baseline", "transform": figure.transFigure}
    x = MARGIN / width
    alike = f"{tally.agreed} of {tally.images} images named alike ({tally.agreement:.1%})"
    differ = tally.images - tally.agreed
    order = "differing first, the most confident on top" if differ else "the most different probabilities first"
    title(figure, alike, f"{shown} shown, {order}", MARGIN)
    for label, color, tint in zip(labels, PAIR, PAIR_TINTS, strict=True):
        patch = Rectangle((x, 1 - 1.05 / height), 0.16 / width, 0.12 / height, transform=figure.transFigure)
        patch.set(facecolor=tint, edgecolor=color)
        figure.add_artist(patch)
        label = printable_name(label)
        longest = int((width / 2 - MARGIN - 0.6) / 0.1)  # 0.1 inches per bold letter
        label = label if len(label) <= longest else f"…{label[-longest:]}"
        text = figure.text(x + 0.24 / width, 1 - 1.04 / height, label, color=color, weight="bold", **at)
        x = text.get_window_extent().x1 / figure.bbox.width + 0.35 / width


def _draw_example(figure: Figure, pair: Pair, left: float, top: float) -> None:
    """`left` and `top` in inches from the lower left corner of the figure."""
    image = _axes(figure, left, top - SIDE, SIDE, SIDE)
    picture = open_image(pair.first.stored or pair.path, min_side=PIXELS)
    picture.thumbnail((PIXELS, PIXELS))
    image.imshow(picture, interpolation="lanczos")
    image.set_anchor("N")
    bars_left, bars_width = left + SIDE + 0.18, WIDTH - SIDE - 0.18
    bars = _axes(figure, bars_left, top - SIDE, bars_width, SIDE)
    bars.set(xlim=(0, bars_width), ylim=(-SIDE, 0))
    name = printable_name(pair.path.name)
    _text(bars, 0, -0.12, name, bars_width - 0.5, weight="bold")
    verdict, color = ("alike", QUIET) if pair.agree else ("differ", ALARM)
    _text(bars, bars_width, -0.12, verdict, 0.5, ha="right", color=color)
    shown = min(3, max(len(pair.first.classes), len(pair.second.classes)))
    for prediction, color, tint, y in zip(
        (pair.first, pair.second), PAIR, PAIR_TINTS, (-0.26, -0.26 - shown * ROW - 0.06), strict=True
    ):
        _draw_bars(bars, prediction, color, tint, y, bars_width)


def _draw_bars(axes: Axes, prediction: Prediction, color: str, tint: str, top: float, width: float) -> None:
    """A row per class: name and probability on a track that is filled as far as the probability goes."""
    for rank, (name, probability) in enumerate(prediction.classes[:3]):
        y = top - (rank + 1) * ROW
        axes.add_patch(Rectangle((0, y), width, ROW - 0.035, facecolor=TRACK))
        axes.add_patch(Rectangle((0, y), width * probability, ROW - 0.035, facecolor=tint))
        weight = "bold" if rank == 0 else "normal"
        middle = y + (ROW - 0.035) / 2
        style: dict[str, Any] = {"color": color if rank == 0 else INK, "weight": weight, "size": 8.5}
        _text(axes, 0.06, middle, printable_name(name), width - 0.62, **style)
        _text(axes, width - 0.05, middle, f"{probability:.1%}", 0.6, ha="right", **style)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes without a frame, placed in inches."""
    whole_width, whole_height = figure.get_size_inches()
    axes = figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))
    axes.axis("off")
    return axes


def _text(axes: Axes, x: float, y: float, text: str, width: float, **style: Any) -> None:
    """Text of at most `width` inches; what is too long ends in an ellipsis."""
    drawn = axes.text(x, y, text, va="center", **style)
    kept = text
    while drawn.get_window_extent().width > width * DPI and len(kept) > 1:
        kept = kept[: min(len(kept) - 1, int(len(kept) * width * DPI / drawn.get_window_extent().width) + 1)]
        drawn.set_text(f"{kept.rstrip()}…")
