"""How every picture of this package looks, and the one way in which it is drawn into a file. Needs matplotlib."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vssm._writing import replacing

COLORS = ("#1f6f8b", "#d1495b", "#6a994e", "#7b5ea7", "#e09f3e", "#3d5a80", "#9c6644", "#5f6368")
PAIR, PAIR_TINTS = (COLORS[0], "#b5531c"), ("#cfe3ea", "#f6dcc9")  # of two models side by side, and behind text
INK, QUIET, FAINT, TRACK = "#222831", "#5f6368", "#9aa0a6", "#f1f3f4"
ALARM = "#b3261e"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}
DPI = 130
VECTORS = (".pdf", ".svg")
NO_CHANGE: Mapping[str, Any] = {}


@contextmanager
def drawing(
    path: Path,
    size: tuple[float, float],
    dpi: int = DPI,
    colors: int | None = None,
    style: Mapping[str, Any] = NO_CHANGE,
) -> Iterator[Figure]:
    """A figure of `size` inches in this style; it becomes the file `path` when the block ends without an error: vectors
    for the endings .pdf and .svg, else a PNG.

    colors: of a palette, for drawings without photographs: 256 are enough for them, in less than half of the bytes.
    style: what this picture has otherwise.

    Raises:
        OSError: the file cannot be written; an older one is left as it was.
    """
    vectors = path.suffix.lower() in VECTORS
    changed: dict[Any, Any] = {**STYLE, **style}
    with rc_context(changed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, dpi=dpi, facecolor="white")
        FigureCanvasAgg(figure)  # asked for, so that the backend of the process plays no part
        yield figure
        with replacing(path) as new:
            if colors is None or vectors:
                figure.savefig(new, format=path.suffix[1:].lower() if vectors else "png")
            else:
                buffer = io.BytesIO()
                figure.savefig(buffer, format="png")
                Image.open(buffer).convert("RGB").quantize(colors).save(new, "PNG", optimize=True)


def title(figure: Figure, text: str, under: str, left: float) -> None:
    """The two lines on top of a picture; `left` in inches."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - 0.45 / height, text, size=15, weight="bold")
    figure.text(left / width, 1 - 0.76 / height, under, size=9.5, color=QUIET)


def heading(axes: Axes, text: str, **style: Any) -> None:
    """The line on top of one panel."""
    axes.set_title(text, loc="left", **{"size": 11, "weight": "bold", **style})
