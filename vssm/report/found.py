"""What a page has about a run of any task, its curves; and of detection and segmentation, figures per class and
results beside the truth."""

import math
from collections.abc import Sequence

from vssm._markup import Markup, file_name, join, name_of, table, tag, void
from vssm.figures.charts import Series, line_chart
from vssm.report.gather import Drawn, Report
from vssm.report.words import amount, percent

CLASSES_SHOWN = 200


def charts(drawn: Sequence[Markup], otherwise: str) -> Markup:
    drawn = [chart for chart in drawn if chart]
    return tag("div", *drawn, class_="charts") if drawn else tag("p", otherwise)


def found_tiles(report: Report) -> list[tuple[str, str]]:
    """(name, value) of the task's metrics, the one that decides first."""
    task, logged = report.task, report.quality.logged()
    names = [task.monitor, *(name for name in task.columns if name != task.monitor)]
    shown = [
        (_heading(report, name), percent(logged[name]) if _is_share(report, name) else f"{logged[name]:.4f}")
        for name in names
        if name in logged
    ]
    first, value = shown[0]
    return [(f"{first} of {amount(report.quality.images, 'validation image')}", value), *shown[1:]]


def curves(report: Report) -> Markup:
    history = report.history
    shares = [name for name in report.task.columns if _is_share(report, name)]
    drawn = [
        line_chart(
            "Loss",
            [
                Series("training", history.points("train_loss"), 0, faint=True),
                Series("validation", history.points("val_loss"), 1),
            ],
            "step",
        ),
        line_chart(
            "On the validation images",
            [Series(_heading(report, name), history.points(name), i) for i, name in enumerate(shares)],
            "step",
            percent=True,
        ),
        line_chart("Learning rate", [Series("learning rate", history.points("lr"), 3)], "step", zero=True),
        line_chart(
            "Throughput", [Series("training images/s", history.points("images_per_second"), 5)], "step", zero=True
        ),
    ]
    return charts(drawn, "metrics.csv holds no finite value to draw.")


def found_classes(report: Report) -> Markup:
    """The weakest first, by the last share."""
    figures = report.quality.by_class()
    if not figures:
        return Markup()
    last = list(figures.values())[-1]
    order = sorted(range(len(last)), key=lambda k: (math.isnan(last[k]), last[k], report.classes[k]))
    trained = report.trained_on
    rows = [
        [
            name_of(report.classes[k]),
            *(percent(values[k], 1) if name.startswith("%") else f"{values[k]:g}" for name, values in figures.items()),
            *([trained[k]] if trained else []),
        ]
        for k in order[:CLASSES_SHOWN]
    ]
    headings = ["class", *(name.removeprefix("%") for name in figures), *(["trained on"] if trained else [])]
    sentence = "The weakest classes come first."
    if len(order) > CLASSES_SHOWN:
        sentence += f" The first {CLASSES_SHOWN} of {len(order)} are shown."
    return join([tag("p", sentence), table("Classes, the weakest first", headings, rows)])


def found_examples(report: Report) -> Markup:
    if not report.examples:
        return Markup()
    text = f"{amount(len(report.examples), 'image')}, spread evenly over the split: what was found, then what is true."
    return join([tag("p", text), tag("div", *map(_example, report.examples), class_="examples")])


def _example(one: Drawn) -> Markup:
    return tag(
        "figure",
        tag("div", void("img", src=one.found, alt="found"), void("img", src=one.truth, alt="true"), class_="pair"),
        tag("figcaption", file_name(one.file), class_="quiet"),
    )


def _heading(report: Report, name: str) -> str:
    return report.task.headings[name].removeprefix("%")


def _is_share(report: Report, name: str) -> bool:
    return report.task.headings[name].startswith("%")
