"""The page about several runs: side by side where they are comparable, and each in full below."""

import math
from collections.abc import Sequence

from vssm._markup import Markup, join, name_of, table, tag
from vssm._words import same_names
from vssm.data.imagefolder import some
from vssm.figures.charts import Series, line_chart
from vssm.report.found import charts, found_tiles
from vssm.report.gather import Report
from vssm.report.page import document, notes, section, sections, subtitle, tiles
from vssm.report.words import duration, magnitude, percent
from vssm.tasks.classification.metrics import Details


def comparison_page(reports: Sequence[Report]) -> str:
    """Curves are laid over each other for runs of the same classes, and the best values are marked for runs that were
    evaluated on the same images; differences are stated."""
    tasks = sorted({report.task.name for report in reports})
    if len(tasks) > 1:
        raise ValueError(f"runs of {' and '.join(tasks)} cannot be compared; name runs of one task")
    names = run_names(reports)
    differences = _differences(reports, names)
    same_classes = all(same_names(report.classes, reports[0].classes) for report in reports)
    body = [
        tag("h1", f"{len(reports)} runs {'compared' if same_classes else 'of different classes'}"),
        *(tag("p", note, class_="note", role="note") for note in differences),
        section("Results", _results(reports, names, marked=not differences)),
    ]
    if same_classes:
        body.append(section("Learning curves", _overlaid(reports, names)))
    body.append(section("Costs", _costs(reports, names)))
    return document(f"{len(reports)} runs compared", *body, *map(_in_full, reports, names))


def _in_full(report: Report, name: str) -> Markup:
    heading, value = _figure(report)
    result = tag("span", f"{heading} {value}", class_="quiet")
    summary = tag("summary", tag("h2", name_of(name)), " ", result)
    parts = (section(title, content, level=3) for title, content in sections(report).items())
    return tag("details", summary, subtitle(report), tiles(report), *notes(report), *parts, class_="run")


def _figure(report: Report) -> tuple[str, str]:
    if isinstance(report.quality, Details):
        return "top-1", percent(report.quality.top1)
    return found_tiles(report)[0]


def _differences(reports: Sequence[Report], names: Sequence[str]) -> list[str]:
    """What keeps the runs from being comparable."""
    first, notes = reports[0], []
    for report, name in zip(reports[1:], names[1:], strict=True):
        if not same_names(report.classes, first.classes):
            here, there = set(report.classes) - set(first.classes), set(first.classes) - set(report.classes)
            apart = [
                f"only {run} has {some(sorted(which))}" for run, which in ((name, here), (names[0], there)) if which
            ]
            reason = "; ".join(apart) or "they are in another order"
            notes.append(
                f"{name} and {names[0]} have different classes ({len(report.classes)} and {len(first.classes)}): "
                f"{reason}. Their figures answer different questions and are not compared."
            )
        elif report.images_id != first.images_id:
            notes.append(
                f"{name} and {names[0]} were evaluated on different images ({report.quality.images} and "
                f"{first.quality.images}): small differences mean little, and no best value is marked."
            )
    return notes


def _results(reports: Sequence[Report], names: Sequence[str], marked: bool) -> Markup:
    nan = float("nan")
    columns: list[tuple[str, list[float], bool, bool]]  # heading, values, is a share, higher is better
    details = [report.quality for report in reports if isinstance(report.quality, Details)]
    columns = [
        ("top-1", [q.top1 for q in details], True, True),
        ("top-5", [nan if q.top5 is None else q.top5 for q in details], True, True),
        ("mean recall", [float(q.recall.nanmean()) for q in details], True, True),
        ("loss", [q.loss for q in details], False, False),
        ("ECE", [q.ece for q in details], True, False),
    ]
    if len(details) < len(reports):
        task = reports[0].task
        logged = [report.quality.logged() for report in reports]
        columns = [
            (task.headings[name].removeprefix("%"), [found.get(name, nan) for found in logged], True, True)
            for name in task.columns
            if task.headings[name].startswith("%") and any(name in found for found in logged)
        ]
    rows = []
    for i, (report, name) in enumerate(zip(reports, names, strict=True)):
        cells: list[object] = []
        for _, values, is_share, higher in columns:
            shown = percent(values[i]) if is_share else f"{values[i]:.4f}"
            best = marked and _is_best(values[i], values, higher)
            cells.append(tag("b", shown) if best else shown)
        rows.append([_run(report, name), *cells, report.quality.images])
    sentence = "Each run is evaluated on its own validation images."
    if marked:
        sentence = "All runs were evaluated on the same images. The best value of a column is bold."
    headings = ["run", *(name for name, *_ in columns), "images"]
    return join([tag("p", sentence), table("Results", headings, rows)])


def _costs(reports: Sequence[Report], names: Sequence[str]) -> Markup:
    rows = []
    for report, name in zip(reports, names, strict=True):
        speed, seconds = report.history.images_per_second(), report.training_seconds
        rows.append(
            [
                _run(report, name),
                magnitude(report.parameters),
                "-" if report.multiply_adds is None else magnitude(report.multiply_adds),
                f"{speed:.0f}" if speed else "-",
                duration(seconds) if seconds else "-",
                f"{report.images_per_second:.0f}",
            ]
        )
    headings = ["run", "parameters", "multiply-adds", "training images/s", "training time", "evaluated images/s"]
    return table("Costs", headings, rows)


def _run(report: Report, name: str) -> Markup:
    model = report.settings.model.name
    return join([name_of(name), *([] if model == name else [tag("div", model, class_="quiet")])])


def _is_best(value: float, values: Sequence[float], higher: bool) -> bool:
    finite = [one for one in values if math.isfinite(one)]
    return bool(finite) and value == (max if higher else min)(finite)


def _overlaid(reports: Sequence[Report], names: Sequence[str]) -> Markup:
    def chart(title: str, column: str, percent: bool = False, against: str = "epoch") -> Markup:
        runs = zip(names, reports, strict=True)
        series = [Series(name, report.history.points(column, against), i) for i, (name, report) in enumerate(runs)]
        return line_chart(title, series, against, percent)

    task = reports[0].task
    name = task.headings[task.monitor].removeprefix("%")
    drawn = [
        chart(f"{name[:1].upper()}{name[1:]} on the validation images", task.monitor, percent=True),
        chart("Validation loss", "val_loss"),
        chart("Training loss", "train_loss", against="step"),
        chart("Training images/s", "images_per_second", against="step"),
    ]
    return charts(drawn, "No metrics.csv holds a finite value to draw.")


def run_names(reports: Sequence[Report]) -> list[str]:
    """The folders' names, or their paths where two names are the same."""
    names = [report.name for report in reports]
    return [name if names.count(name) == 1 else str(r.path) for name, r in zip(names, reports, strict=True)]
