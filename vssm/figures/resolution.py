"""The figure of classifiers by image size: accuracy with and without linear tuning, multiply-adds, speed.

As figure 11 of VMamba (arXiv 2401.10166); every mark was counted or measured here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from vssm.figures.style import COLORS, drawing, heading, title

__all__ = ["draw"]

PANELS = (
    ("top1", "Top-1 without tuning, %", 100.0),
    ("top1_linear", "Top-1, last layer tuned, %", 100.0),
    ("macs", "G multiply-adds", 1e-9),
    ("images_per_second", "Images per second", 1.0),
    ("train_images_per_second", "Training images per second", 1.0),
)


def draw(records: Sequence[Mapping[str, Any]], about: str, path: Path) -> None:
    """Write the records of `vssm.report.resolution.study` as .png, .pdf or .svg: a panel for each figure that they
    have, a line for each model. about: the line below the title. Raises OSError when it cannot be written."""
    panels = [panel for panel in PANELS if any(record[panel[0]] is not None for record in records)]
    models = list(dict.fromkeys(record["model"] for record in records))
    sizes = sorted({record["size"] for record in records})
    width, height = 3.9 * len(panels), 4.6
    with drawing(path, (width, height), style={"text.parse_math": False}) as figure:
        title(figure, "Classifiers on images of other sizes", about, 0.25)
        axes: list[Axes] = list(figure.subplots(1, len(panels), squeeze=False).flatten())
        figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, top=0.7, bottom=0.22, wspace=0.24)
        for panel, (key, name, factor) in zip(axes, panels, strict=True):
            for number, model in enumerate(models):
                own = [record for record in records if record["model"] == model and record[key] is not None]
                places, values = [r["size"] for r in own], [factor * r[key] for r in own]
                color = COLORS[number % len(COLORS)]
                panel.plot(places, values, "o-", color=color, markersize=5, linewidth=1.6, label=model)
            if factor != 100.0:
                panel.set_yscale("log")
                panel.yaxis.set_major_formatter(ScalarFormatter())
                panel.yaxis.set_minor_formatter(ScalarFormatter())
                panel.tick_params(axis="y", which="minor", labelsize=8)
            panel.xaxis.set_major_locator(FixedLocator(sizes))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.tick_params(axis="x", labelrotation=45 if len(sizes) > 4 else 0)
            panel.set_xlabel("side of the image")
            heading(panel, name)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=min(4, len(models)))
