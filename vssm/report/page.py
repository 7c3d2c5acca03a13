"""The page: one run in full, or several beside each other with each in full below."""

import math
from collections.abc import Sequence
from pathlib import Path

from vssm.report.charts import Series, calibration_chart, confusion_matrix, line_chart
from vssm.report.gather import Picture, Report
from vssm.report.markup import Markup, join, table, tag, void
from vssm.report.measures import Quality

STYLE = Path(__file__).with_name("style.css")
MATRIX_CLASSES = 100
CONFUSIONS = 12


def page(reports: Sequence[Report]) -> str:
    """The whole HTML document, standing on its own: no script, no other file."""
    if len(reports) == 1:
        (report,) = reports
        title, body = f"Report of {report.name}", _single(report)
    else:
        title, body = f"{len(reports)} runs compared", _comparison(reports)
    head = tag(
        "head",
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    version = reports[0].environment.get("versions", "vssm")
    footer = tag("footer", f"Written by vssm report. {version}" if len(reports) == 1 else "Written by vssm report.")
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", body, footer)), lang="en") + "\n"


def _single(report: Report) -> Markup:
    return join([tag("h1", report.name), _subtitle(report), _tiles(report), *_sections(report)])


def _subtitle(report: Report) -> Markup:
    data = report.settings.data
    source = data.root if data.root is not None else data.name
    return tag("p", f"{report.settings.model.name} on {source}, judged with {report.checkpoint}", class_="quiet")


def _sections(report: Report) -> list[Markup]:
    return [
        *(tag("p", note, class_="note", role="note") for note in report.notes),
        _section("The run", _facts(report)),
        _section("Learning curves", _curves(report)),
        _section("Calibration", _calibration(report)),
        _section("Classes", _classes(report)),
        _section("Confusions", _confusions(report)),
        _section("The most confident mistakes", _mistakes(report)),
        _section("Settings", _settings(report)),
    ]


def _section(title: str, *content: Markup) -> Markup:
    return tag("section", tag("h2", title), *content)


def _tiles(report: Report) -> Markup:
    quality = report.quality
    low, high = quality.top1_interval()
    tiles = [(f"top-1, 95 % interval {low * 100:.1f} to {high * 100:.1f} %", percent(quality.top1))]
    if quality.top5 is not None:
        tiles.append(("top-5", percent(quality.top5)))
    tiles += [
        ("recall, mean over classes", percent(_mean(quality.recall))),
        ("calibration error (ECE)", percent(quality.ece)),
        ("loss", f"{quality.loss:.4f}"),
        ("validation images", f"{quality.images}"),
    ]
    return tag(
        "div", *(tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in tiles), class_="tiles"
    )


def _facts(report: Report) -> Markup:
    settings, history = report.settings, report.history
    steps = int(history.rows[-1]["step"]) if history.rows else 0
    epochs = int(history.rows[-1]["epoch"]) if history.rows else 0
    batch = settings.data.batch_size * settings.trainer.accumulate_grad_batches
    speed, seconds = history.images_per_second(), report.training_seconds
    facts = {
        "model": f"{settings.model.name}, {report.parameters / 1e6:.2f} M parameters",
        "start": settings.model.init_from or ("published weights" if settings.model.pretrained else "from scratch"),
        "images": f"{settings.data.root or settings.data.name}, {len(report.classes)} classes, "
        + "x".join(map(str, report.input_size)),
        "training": f"{epochs} of {settings.trainer.max_epochs} epochs, {steps} steps of {batch} images, "
        f"lr {settings.optim.lr:g}, {settings.trainer.precision}, seed {settings.seed}",
        "checkpoint": f"{report.path / 'checkpoints' / report.checkpoint}",
        "time": f"{duration(seconds)} in training steps" if seconds else "not recorded",
        "throughput": (f"training {speed:.0f} images/s, " if speed else "")
        + f"this evaluation {report.images_per_second:.0f} images/s with loading",
        **{name: str(value) for name, value in report.environment.items()},
    }
    return tag("dl", *(Markup(tag("dt", name) + tag("dd", value)) for name, value in facts.items()))


def _curves(report: Report) -> Markup:
    history = report.history
    charts = [
        line_chart(
            "Loss",
            [
                Series("training", history.points("train_loss"), 0, faint=True),
                Series("validation", history.points("val_loss"), 1),
            ],
            "step",
        ),
        line_chart(
            "Accuracy on the validation images",
            [Series("top-1", history.points("val_top1"), 0), Series("top-5", history.points("val_top5"), 2)],
            "step",
            percent=True,
        ),
        line_chart("Learning rate", [Series("learning rate", history.points("lr"), 3)], "step", zero=True),
        line_chart(
            "Throughput", [Series("training images/s", history.points("images_per_second"), 5)], "step", zero=True
        ),
    ]
    return _charts(charts, "metrics.csv holds no finite value to draw.")


def _charts(charts: Sequence[Markup], otherwise: str) -> Markup:
    drawn = [chart for chart in charts if chart]
    return tag("div", *drawn, class_="charts") if drawn else tag("p", otherwise)


def _calibration(report: Report) -> Markup:
    quality = report.quality
    surer = sum((one.confidence - one.accuracy) * one.count for one in quality.bins)
    total = sum(one.count for one in quality.bins)
    lean = "surer than it is right" if surer > 0 else "less sure than it is right"
    said = (
        f"Expected calibration error {percent(quality.ece)} over {len(quality.bins)} filled of 15 equal bins. "
        f"On average the model is {lean}, by {abs(surer) / total * 100:.1f} points."
    )
    return join([tag("p", said), tag("div", calibration_chart(quality.bins, quality.ece), class_="charts")])


def _classes(report: Report) -> Markup:
    """Worst first: that is where a reader can do something."""
    quality = report.quality
    values = zip(
        report.classes,
        quality.precision.tolist(),
        quality.recall.tolist(),
        quality.f1.tolist(),
        quality.support.tolist(),
        strict=True,
    )
    ordered = sorted(values, key=lambda row: (math.isnan(row[3]), row[3], row[0]))
    rows: list[list[object]] = [
        [name, percent(precision), join([percent(recall), _bar(recall)]), percent(f1), support]
        for name, precision, recall, f1, support in ordered
    ]
    mean = tag(
        "p",
        f"Mean over classes: precision {percent(_mean(quality.precision))}, recall {percent(_mean(quality.recall))}, "
        f"F1 {percent(_mean(quality.f1))}. The weakest classes come first.",
    )
    return join([mean, table(["class", "precision", "recall", "F1", "images"], rows, "tall")])


def _bar(share: float) -> Markup:
    width = 0.0 if math.isnan(share) else share * 100
    return tag("span", tag("i", style=f"width:{width:.0f}%"), class_="bar", aria_hidden="true")


def _confusions(report: Report) -> Markup:
    quality, names = report.quality, report.classes
    counts = quality.confusion
    shown = list(range(len(names)))
    if len(names) > MATRIX_CLASSES:
        wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diag()
        shown = sorted(wrong.argsort(descending=True, stable=True)[:MATRIX_CLASSES].tolist())
        text = f"The {MATRIX_CLASSES} of {len(names)} classes that are confused most. "
    else:
        text = ""
    text += "Rows are the true classes, columns what they were read as; colour is the share of the row."
    matrix = confusion_matrix(counts[shown][:, shown].tolist(), [names[i] for i in shown])
    return join([tag("p", text), matrix, _pairs(quality, names)])


def _pairs(quality: Quality, names: Sequence[str]) -> Markup:
    counts = quality.confusion.clone()
    counts.fill_diagonal_(0)
    top = counts.flatten().topk(min(CONFUSIONS, counts.numel()))
    pairs = [
        (divmod(place, len(names)), count) for place, count in zip(top.indices.tolist(), top.values.tolist()) if count
    ]
    if not pairs:
        return tag("p", "No image was read wrongly.")
    support = quality.support.tolist()
    rows: list[list[object]] = [
        [names[truth], names[read], count, percent(count / support[truth])] for (truth, read), count in pairs
    ]
    return join([tag("h3", "Most frequent"), table(["true class", "predicted", "images", "of the class"], rows)])


def _mistakes(report: Report) -> Markup:
    if not report.pictures:
        return tag("p", "No image was read wrongly.")
    wrong = report.quality.images - report.quality.not_finite - int(report.quality.confusion.diag().sum())
    text = f"{len(report.pictures)} of {wrong} wrongly read images, as the model saw them, the surest first."
    text += " Look here for wrong labels, too."
    return join([tag("p", text), tag("div", *(_figure(one, report) for one in report.pictures), class_="pictures")])


def _figure(picture: Picture, report: Report) -> Markup:
    mistake = picture.mistake
    truth, read = report.classes[mistake.truth], report.classes[mistake.read]
    where = picture.file or f"image {mistake.index}"
    return tag(
        "figure",
        void("img", src=picture.uri, alt=f"{truth}, predicted {read}", class_="small" if picture.side <= 64 else None),
        tag(
            "figcaption",
            Markup(f"{tag('b', read)} {percent(mistake.confidence)}"),
            void("br"),
            "is ",
            tag("b", truth),
            void("br"),
            tag("span", where, class_="quiet"),
        ),
    )


def _settings(report: Report) -> Markup:
    import yaml

    written = yaml.safe_dump(report.settings.as_dict(), sort_keys=False, allow_unicode=True)
    return tag("details", tag("summary", "config.yaml"), tag("pre", written))


def _comparison(reports: Sequence[Report]) -> Markup:
    names = run_names(reports)
    lines = tag("p", "Judged on the validation images of each run. The best value of a column is bold.", class_="quiet")
    notes = [tag("p", note, class_="note", role="note") for note in _differences(reports, names)]
    details = [
        tag("details", tag("summary", f"{name}: {report.settings.model.name}"), *_sections(report), class_="run")
        for name, report in zip(names, reports, strict=True)
    ]
    return join(
        [
            tag("h1", f"{len(reports)} runs compared"),
            lines,
            *notes,
            _section("Results", _results(reports, names)),
            _section("Learning curves", _overlaid(reports, names)),
            *details,
        ]
    )


def _differences(reports: Sequence[Report], names: Sequence[str]) -> list[str]:
    """What keeps the runs from being comparable."""
    first, notes = reports[0], []
    for report, name in zip(reports[1:], names[1:], strict=True):
        if report.classes != first.classes:
            here, there = set(report.classes) - set(first.classes), set(first.classes) - set(report.classes)
            apart = [
                f"only {run} has {_some(sorted(which))}" for run, which in ((name, here), (names[0], there)) if which
            ]
            reason = "; ".join(apart) or "they are in another order"
            notes.append(
                f"{name} and {names[0]} have different classes ({len(report.classes)} and {len(first.classes)}): "
                f"{reason}. Their accuracies answer different questions."
            )
        elif (report.quality.support != first.quality.support).any():
            notes.append(
                f"{name} and {names[0]} were judged on different images ({report.quality.images} and "
                f"{first.quality.images}): small differences between them mean nothing."
            )
    return notes


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def _results(reports: Sequence[Report], names: Sequence[str]) -> Markup:
    nan = float("nan")
    columns: list[tuple[str, list[float], bool, bool]] = [  # heading, values, is a share, higher is better
        ("top-1", [r.quality.top1 for r in reports], True, True),
        ("top-5", [nan if r.quality.top5 is None else r.quality.top5 for r in reports], True, True),
        ("mean recall", [_mean(r.quality.recall) for r in reports], True, True),
        ("loss", [r.quality.loss for r in reports], False, False),
        ("ECE", [r.quality.ece for r in reports], True, False),
    ]
    rows: list[list[object]] = []
    for i, (report, name) in enumerate(zip(reports, names, strict=True)):
        cells: list[object] = []
        for _, values, is_share, higher in columns:
            finite = [value for value in values if math.isfinite(value)]
            best = bool(finite) and values[i] == (max if higher else min)(finite)
            shown = percent(values[i]) if is_share else f"{values[i]:.4f}"
            cells.append(tag("span", shown, class_="best") if best else shown)
        speed, seconds = report.history.images_per_second(), report.training_seconds
        rows.append(
            [
                join([name, void("br"), tag("span", report.settings.model.name, class_="quiet")]),
                *cells,
                f"{report.quality.images}",
                f"{report.parameters / 1e6:.2f} M",
                f"{speed:.0f}" if speed else "-",
                duration(seconds) if seconds else "-",
            ]
        )
    headings: list[object] = ["run", *(name for name, *_ in columns), "images", "parameters", "train img/s", "time"]
    return table(headings, rows)


def _overlaid(reports: Sequence[Report], names: Sequence[str]) -> Markup:
    def chart(title: str, column: str, percent: bool = False, against: str = "epoch") -> Markup:
        runs = zip(names, reports, strict=True)
        series = [Series(name, report.history.points(column, against), i) for i, (name, report) in enumerate(runs)]
        return line_chart(title, series, against, percent)

    charts = [
        chart("Top-1 on the validation images", "val_top1", percent=True),
        chart("Validation loss", "val_loss"),
        chart("Training loss", "train_loss", against="step"),
        chart("Training images/s", "images_per_second", against="step"),
    ]
    return _charts(charts, "No metrics.csv holds a finite value to draw.")


def run_names(reports: Sequence[Report]) -> list[str]:
    """The folders' names, or their paths where two names are the same."""
    names = [report.name for report in reports]
    return [name if names.count(name) == 1 else str(r.path) for name, r in zip(names, reports, strict=True)]


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share * 100:.2f} %"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _mean(values) -> float:
    return float(values.nanmean())
