"""How the pictures of this package look. Needs matplotlib, and chooses its drawing into files."""

from typing import Any

import matplotlib

matplotlib.use("Agg")

COLORS = ("#1f6f8b", "#d1495b", "#6a994e", "#7b5ea7", "#e09f3e", "#3d5a80", "#9c6644", "#5f6368")
INK, QUIET, FAINT = "#222831", "#5f6368", "#9aa0a6"
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
}
