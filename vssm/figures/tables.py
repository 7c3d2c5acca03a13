"""The papers' figures that belong to a table: what is counted and measured here, and what the paper reports, marked.

Figures 3 (e), 4, 7 and 11 of VMamba (arXiv 2401.10166). Filled marks are ours; hollow ones, and every accuracy, are the
paper's.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from vssm.analysis.tables.records import Record
from vssm.analysis.tables.table import Row, Table
from vssm.figures.style import COLORS, QUIET, drawing, heading, title

LEFT = 0.25  # of the title, in inches
NOTHING = math.nan  # leaves a gap in a line


def draw(table: Table, found: Sequence[Record], reference: Row | None, path: Path) -> None:
    """Write the figure of a table as a PNG, from its records; measured speeds are drawn where there are any.

    Speeds are relative to `reference`, where none was measured to the first row.

    Raises:
        ValueError: a table without a figure.
        OSError: the file cannot be written.
    """
    if table.figure is None:
        raise ValueError(f"the papers draw no figure of table {table.name}")
    size, fill = _DRAWN[table.figure]
    with drawing(path, size) as figure:
        fill(figure, table, found, reference or table.rows[0])


def _panels(figure: Figure, rows: int, columns: int, **placed: Any) -> list[Axes]:
    """A grid of axes below the title."""
    width, height = figure.get_size_inches()
    place = {"left": 0.8 / width, "right": 1 - 0.3 / width, "top": 1 - 1.35 / height, "bottom": 0.65 / height}
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(**{**place, "wspace": 0.22, "hspace": 0.38, **placed})
    return list(axes.flatten())


def _under(table: Table, counts: bool, measured: bool) -> str:
    """What filled and hollow marks are."""
    ours = " and ".join(word for word, drawn in (("counted", counts), ("measured", measured)) if drawn)
    filled = f"Filled: {ours} here. " if ours else ""
    return f"{table.source}. {filled}Hollow: the paper's, and so is every accuracy."


def _paper_speed(table: Table, reference: Row, row: Row) -> float | None:
    if row.throughput is None or reference.throughput is None:
        return None
    return row.throughput / reference.throughput


def _label(axes: Axes, bars: Any, texts: Sequence[str]) -> None:
    axes.bar_label(bars, texts, padding=3, size=8.5, color=QUIET)


# ---- figure 3 (e): steps of acceleration ----


def _steps(figure: Figure, table: Table, found: Sequence[Record], reference: Row) -> None:
    rows, measured = table.rows, found[0].get("ratio") is not None
    title(figure, "From the vanilla VMamba-T to VMamba-T, step by step", _under(table, True, measured), LEFT)
    macs, speed, score = _panels(figure, 1, 3, left=0.355, wspace=0.1)
    places = list(range(len(rows)))
    names = [f"{row.change}   {row.name}" if row.change else row.name for row in rows]
    for axes in (macs, speed, score):
        axes.set_yticks(places, names if axes is macs else [])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)

    values = [(record["macs"] or 0) / 1e9 for record in found]
    _label(macs, macs.barh(places, values, 0.6, color=COLORS[0]), [f"{value:.2f}" for value in values])
    macs.set_xlim(0, 1.18 * max(values))
    heading(macs, "G multiply-adds")

    paper = [_paper_speed(table, reference, row) or 0 for row in rows]
    ours = [record.get("ratio") or 0 for record in found]
    height = 0.36 if measured else 0.6
    bars = speed.barh([y - measured * 0.19 for y in places], paper, height, fill=False, edgecolor=COLORS[1])
    _label(speed, bars, [f"{value:.2f}" for value in paper])
    if measured:
        bars = speed.barh([y + 0.19 for y in places], ours, height, color=COLORS[1])
        _label(speed, bars, [f"{value:.2f}" for value in ours])
    speed.set_xlim(0, 1.18 * max([*paper, *ours, 1e-9]))
    heading(speed, f"Images per second, {reference.name} = 1")

    scores = [float(row.scores["top1"]) for row in rows]
    score.plot(scores, places, "o-", color=COLORS[2], markerfacecolor="white", markersize=8)
    for place, value in zip(places, scores, strict=True):
        score.annotate(f"{value:.2f}", (value, place), (9, -3), textcoords="offset points", size=8.5, color=QUIET)
    score.margins(x=0.25)
    score.xaxis.set_major_locator(MaxNLocator(4))
    heading(score, "ImageNet-1K top-1, %")


# ---- figure 4 (a): dense prediction against classification ----

FAMILIES = {"Swin": "swin_", "ConvNeXt": "convnext_", "Vanilla VMamba": "vanilla_vmamba_", "VMamba": "vmamba_"}
DENSE = {"ap_box": "COCO, box AP", "ap_mask": "COCO, mask AP", "miou": "ADE20K, mIoU"}


def _downstream(figure: Figure, table: Table, found: Sequence[Record], reference: Row) -> None:
    under = "VMamba (arXiv 2401.10166), figure 4 (a). Every accuracy is the paper's; areas: multiply-adds counted here."
    title(figure, "Backbones for dense prediction, against their ImageNet accuracy", under, LEFT)
    panels = _panels(figure, 1, 3)
    for axes, (key, score) in zip(panels, DENSE.items(), strict=True):
        for color, (family, prefix) in zip(COLORS, FAMILIES.items(), strict=False):
            drawn = [
                (float(row.scores["top1"]), float(row.downstream[key]), record["macs"] / 1e9)
                for row, record in zip(table.rows, found, strict=True)
                if row.name.startswith(prefix) and row.downstream
            ]
            if drawn:
                x, y, size = zip(*drawn, strict=True)
                axes.plot(x, y, color=color, linewidth=1.2, zorder=1)
                areas = [14 * value for value in size]
                axes.scatter(x, y, areas, facecolor="white", edgecolor=color, linewidth=1.6, label=family, zorder=2)
        axes.set_xlabel("ImageNet-1K top-1, %")
        axes.margins(0.12)
        heading(axes, score)
    panels[0].legend(loc="upper left", markerscale=0.7)


# ---- figure 7: scan patterns ----


def _patterns(figure: Figure, table: Table, found: Sequence[Record], reference: Row) -> None:
    measured = found[0].get("ratio") is not None
    title(figure, "Scan patterns", _under(table, False, measured), LEFT)
    speed, score = _panels(figure, 1, 2)
    patterns = list(dict.fromkeys(row.options.get("scan", "cross") for row in table.rows))
    for color, conv in zip(COLORS, (True, False), strict=False):
        chosen = [i for i, row in enumerate(table.rows) if row.options.get("conv", True) is conv]
        rows = [table.rows[i] for i in chosen]
        places = [patterns.index(row.options.get("scan", "cross")) + (-0.19 if conv else 0.19) for row in rows]
        label = f"with{'' if conv else 'out'} depthwise convolution"
        paper = [_paper_speed(table, reference, row) or 0 for row in rows]
        speed.bar(places, paper, 0.34, fill=False, edgecolor=color, linewidth=1.4, label=label)
        if measured:
            speed.scatter(places, [found[i]["ratio"] for i in chosen], 46, color=color, zorder=3)
        scores = [float(row.scores["top1"]) for row in rows]
        score.plot(places, scores, "o", color=color, markerfacecolor="white", markersize=9, label=label)
        for place, value in zip(places, scores, strict=True):
            score.annotate(f"{value:.2f}", (place, value), (0, 9), textcoords="offset points", ha="center", size=8.5)
    for axes in (speed, score):
        axes.set_xticks(range(len(patterns)), patterns)
        axes.grid(visible=False, axis="x")
    score.margins(y=0.25)
    figure.legend(*speed.get_legend_handles_labels(), loc="upper right", bbox_to_anchor=(0.98, 0.97), fontsize=9)
    heading(speed, f"Images per second, {reference.name} = 1")
    heading(score, "ImageNet-1K top-1, %")


# ---- figures 4 (b) and 11: larger images ----


def _resolutions(figure: Figure, table: Table, found: Sequence[Record], reference: Row) -> None:
    measured = found[0].get("ratio") is not None
    title(figure, "Models trained at 224 x 224 on larger images", _under(table, True, measured), LEFT)
    panels = _panels(figure, 2, 2, right=0.82)
    models = list(dict.fromkeys(row.name.partition("@")[0] for row in table.rows))
    for color, model in zip(COLORS, models, strict=False):
        chosen = [(row, r) for row, r in zip(table.rows, found, strict=True) if row.name.partition("@")[0] == model]
        own: dict[str, Any] = {"color": color, "marker": "o", "markersize": 4.5, "linewidth": 1.5}
        hollow: dict[str, Any] = {**own, "markerfacecolor": "white"}
        dotted: dict[str, Any] = {**hollow, "linestyle": ":"}
        sizes = [row.size for row, _ in chosen]
        counted = [NOTHING if r["macs"] is None else r["macs"] / 1e9 for _, r in chosen]
        # What no package has is drawn as printed.
        printed = [float(row.gmacs or NOTHING) for row, _ in chosen]
        known = all(r["macs"] is not None for _, r in chosen)
        panels[0].plot(sizes, counted if known else printed, **(own if known else hollow), label=model)
        speeds = [_paper_speed(table, reference, row) or NOTHING for row, _ in chosen]
        panels[1].plot(sizes, speeds, **(dotted if measured else hollow))
        if measured:
            panels[1].plot(sizes, [r["ratio"] for _, r in chosen], **own)
        for axes, key in ((panels[2], "top1"), (panels[3], "top1_linear_tuning")):
            axes.plot(sizes, [float(row.scores[key]) for row, _ in chosen], **hollow)
    sizes = sorted({row.size for row in table.rows if isinstance(row.size, int)})
    for axes in panels:
        axes.set_xticks(sizes)
        axes.set_xlabel("side of the image")
    panels[1].set_yscale("log")
    panels[1].yaxis.set_minor_locator(NullLocator())
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]
    low, high = panels[1].get_ylim()
    panels[1].set_yticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    heading(panels[0], "G multiply-adds")
    heading(panels[1], f"Images per second, {reference.name} = 1")
    heading(panels[2], "ImageNet-1K top-1 without tuning, %")
    heading(panels[3], "ImageNet-1K top-1, classifier tuned, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.83, 0.86))


_DRAWN: dict[str, tuple[tuple[float, float], Callable[[Figure, Table, Sequence[Record], Row], None]]] = {
    "3e": ((13.5, 5.6), _steps),
    "4a": ((13, 4.9), _downstream),
    "7": ((11, 4.6), _patterns),
    "11": ((12.5, 9.2), _resolutions),
}
