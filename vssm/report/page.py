"""The page about one run: how good it is, where it fails, how it was trained."""

import math
from collections.abc import Sequence
from pathlib import Path

from vssm._markup import Markup, file_name, join, name_of, table, tag, void
from vssm.figures.charts import calibration_chart
from vssm.figures.matrix import confusion_matrix
from vssm.report.found import curves, found_classes, found_examples, found_tiles
from vssm.report.gather import Picture, Report
from vssm.report.words import amount, duration, magnitude, percent
from vssm.tasks.classification.metrics import Details

STYLE = Path(__file__).with_name("style.css")
MATRIX_CLASSES = 100
CONFUSIONS = 12
CLASSES_SHOWN = 25
FEW = 10
UNREADABLE_SHOWN = 10


def document(title: str, *content: object) -> str:
    """The whole HTML document, standing on its own: no script, no other file."""
    head = tag(
        "head",
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    footer = tag("footer", "Written by vssm report.")
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *content, footer)), lang="en") + "\n"


def run_page(report: Report) -> str:
    parts = sections(report)
    jumps = tag("nav", *(tag("a", title, href=f"#{_anchor(title)}") for title in parts), aria_label="Sections")
    body = (section(title, content, _anchor(title)) for title, content in parts.items())
    heading = tag("h1", name_of(report.name))
    return document(f"Report of {report.name}", heading, subtitle(report), tiles(report), *notes(report), jumps, *body)


def sections(report: Report) -> dict[str, Markup]:
    """What is reported about one run, by heading."""
    if not isinstance(report.quality, Details):
        found = {
            "Learning curves": curves(report),
            "Classes": found_classes(report),
            "Examples": found_examples(report),
            "Unreadable images": _unreadable(report),
            "The run": _facts(report),
        }
        return {title: content for title, content in found.items() if content}
    found = {
        "Learning curves": curves(report),
        "Classes": _classes(report),
        "Confusions": _confusions(report),
        "Mistakes": _mistakes(report),
        "Calibration": _calibration(report),
        "Unreadable images": _unreadable(report),
        "The run": _facts(report),
    }
    return {title: content for title, content in found.items() if content}


def section(title: str, content: Markup, anchor: str | None = None, level: int = 2) -> Markup:
    return tag("section", tag(f"h{level}", title), content, id=anchor)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def subtitle(report: Report) -> Markup:
    data = report.settings.data
    source = data.root if data.root is not None else data.name
    size = "x".join(map(str, report.input_size))
    sentence = f" ({_size_of(report)}) on {source}, {len(report.classes)} classes, images of {size}"
    return tag("p", tag("b", report.settings.model.name), sentence, class_="quiet")


def notes(report: Report) -> list[Markup]:
    return [tag("p", note, class_="note", role="note") for note in report.notes]


def tiles(report: Report) -> Markup:
    quality = report.quality
    if not isinstance(quality, Details):
        return tag(
            "div",
            *(tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in found_tiles(report)),
            class_="tiles",
        )
    low, high = quality.top1_interval()
    images = amount(quality.images, "validation image")
    first = f"top-1 of {images}; 95 % interval {low * 100:.1f} to {percent(high, 1)}"
    shown = [(first, percent(quality.top1))]
    if quality.top5 is not None:
        shown.append(("top-5", percent(quality.top5)))
    shown += [
        ("mean recall of the classes", percent(_mean(quality.recall))),
        ("calibration error (ECE)", percent(quality.ece)),
        ("loss", f"{quality.loss:.4f}"),
    ]
    return tag(
        "div", *(tag("div", tag("b", value), tag("span", name), class_="tile") for name, value in shown), class_="tiles"
    )


def _size_of(report: Report) -> str:
    parameters = f"{magnitude(report.parameters)} parameters"
    if report.multiply_adds is None:
        return parameters
    return f"{parameters}, {magnitude(report.multiply_adds)} multiply-adds per image"


def _facts(report: Report) -> Markup:
    settings, history = report.settings, report.history
    batch = settings.data.batch_size * settings.trainer.accumulate_grad_batches
    speed, seconds = history.images_per_second(), report.training_seconds
    evaluated = f"{report.images_per_second:.0f} images/s in this evaluation, loading included"
    facts = {
        "model": f"{settings.model.name}, {_size_of(report)}",
        "start": settings.model.init_from or ("published weights" if settings.model.pretrained else "from scratch"),
        "training": f"{history.epochs} of {amount(settings.trainer.max_epochs, 'epoch')}, "
        f"{amount(history.steps, 'step')} of {amount(batch, 'image')}, lr {settings.optim.lr:g}, "
        f"{settings.trainer.precision}",
        "seed": settings.seed,
        "checkpoint": _checkpoint(report),
        "throughput": f"{speed:.0f} images/s in training, {evaluated}" if speed else evaluated,
        "time": f"{duration(seconds)} in training steps" if seconds else "not recorded",
        **report.environment,
    }
    listed = tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()))
    return join([listed, _settings(report)])


def _checkpoint(report: Report) -> str:
    where = f"{report.path / 'checkpoints' / report.checkpoint}"
    if report.checkpoint != "best.ckpt":
        return where
    best = report.task.headings[report.task.monitor].removeprefix("%")
    return f"{where}, the epoch with the best {best} on these very images: expect a little less on new ones"


def _settings(report: Report) -> Markup:
    import yaml

    written = yaml.safe_dump(report.settings.as_dict(), sort_keys=False, allow_unicode=True)
    scrolls = {"tabindex": 0, "role": "region", "aria_label": "All settings"}
    return tag("details", tag("summary", "All settings (config.yaml)"), tag("pre", written, **scrolls))


def _calibration(report: Report) -> Markup:
    quality = report.quality
    excess = sum((one.confidence - one.accuracy) * one.count for one in quality.bins)
    total = sum(one.count for one in quality.bins)
    lean = "more confident than it is accurate" if excess > 0 else "less confident than it is accurate"
    sentence = (
        f"Expected calibration error {percent(quality.ece)} over {len(quality.bins)} filled of 15 equal bins. "
        f"On average the model is {lean}, by {abs(excess) / total * 100:.1f} points."
    )
    return join([tag("p", sentence), tag("div", calibration_chart(quality.bins, quality.ece), class_="charts")])


def _classes(report: Report) -> Markup:
    """Worst first: that is where a reader can do something."""
    quality = report.quality
    f1, support = quality.f1.tolist(), quality.support.tolist()
    order = sorted(range(len(f1)), key=lambda k: (math.isnan(f1[k]), f1[k], report.classes[k]))
    few = sum(0 < n < FEW for n in support)
    sentence = (
        f"Mean over classes: precision {percent(_mean(quality.precision))}, recall {percent(_mean(quality.recall))}, "
        f"F1 {percent(_mean(quality.f1))}. The weakest classes come first."
    )
    if few:
        sentence += (
            f" {amount(few, 'class is', 'classes are')} evaluated on fewer than {FEW} images, marked \N{ASTERISK}: "
            "there, one image moves recall by more than 10 points."
        )
    shown, rest = order[:CLASSES_SHOWN], order[CLASSES_SHOWN:]
    parts = [tag("p", sentence), _class_table(report, shown)]
    if rest:
        summary = tag("summary", f"The other {amount(len(rest), 'class', 'classes')}")
        parts.append(tag("details", summary, _class_table(report, rest)))
    return join(parts)


def _class_table(report: Report, order: Sequence[int]) -> Markup:
    quality = report.quality
    columns = [values.tolist() for values in (quality.precision, quality.recall, quality.f1, quality.support)]
    trained = report.trained_on
    rows = []
    for k in order:
        precision, recall, f1, images = (column[k] for column in columns)
        count = f"{images}\N{ASTERISK}" if 0 < images < FEW else f"{images}"
        row = [name_of(report.classes[k]), percent(precision, 1), join([percent(recall, 1), _bar(recall)])]
        rows.append([*row, percent(f1, 1), count, *([trained[k]] if trained else [])])
    headings = ["class", "precision", "recall", "F1", "images", *(["trained on"] if trained else [])]
    return table("Classes, the weakest first", headings, rows)


def _bar(share: float) -> Markup:
    width = 0.0 if math.isnan(share) else share * 100
    return tag("span", tag("i", style=f"width:{width:.0f}%"), class_="bar", aria_hidden="true")


def _confusions(report: Report) -> Markup:
    quality, names = report.quality, report.classes
    counts = quality.confusion
    shown = list(range(len(names)))
    text = ""
    if len(names) > MATRIX_CLASSES:
        wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diag()
        shown = sorted(wrong.argsort(descending=True, stable=True)[:MATRIX_CLASSES].tolist())
        text = f"The {MATRIX_CLASSES} of {len(names)} classes that are confused most. "
    text += "Rows are the true classes, columns the predicted ones; the colour is the share of the row's images."
    support = quality.support.tolist()
    matrix = confusion_matrix(counts[shown][:, shown].tolist(), [support[k] for k in shown], [names[k] for k in shown])
    return join([tag("p", text), matrix, _pairs(quality, names)])


def _pairs(quality: Details, names: Sequence[str]) -> Markup:
    counts = quality.confusion.clone()
    counts.fill_diagonal_(0)
    top = counts.flatten().topk(min(CONFUSIONS, counts.numel()))
    pairs = [
        (divmod(place, len(names)), count) for place, count in zip(top.indices.tolist(), top.values.tolist()) if count
    ]
    if not pairs:
        return Markup()
    support = quality.support.tolist()
    rows = [
        [name_of(names[truth]), name_of(names[read]), count, percent(count / support[truth], 1)]
        for (truth, read), count in pairs
    ]
    headings = ["true class", "predicted", "images", "of the class"]
    return join([tag("h3", "Most frequent"), table("Most frequent confusions", headings, rows, texts=2)])


def _mistakes(report: Report) -> Markup:
    if not report.pictures:
        return tag("p", "No image was misclassified.")
    wrong = report.quality.images - report.quality.not_finite - int(report.quality.confusion.diag().sum())
    text = (
        f"{len(report.pictures)} of {amount(wrong, 'misclassified image')}, as the model saw them, the most confident "
        "first. Look here for wrong labels, too."
    )
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
            tag("div", tag("b", name_of(read)), title=read, class_="wrong"),
            tag("div", f"{percent(mistake.confidence, 1)} confidence", class_="quiet"),
            tag("div", "is ", tag("b", name_of(truth)), title=truth),
            tag("div", file_name(where), title=where, class_="quiet"),
        ),
    )


def _unreadable(report: Report) -> Markup:
    found = report.unreadable
    if not found:
        return Markup()
    left_out = "is left out" if len(found) == 1 else "are left out"
    sentence = f"{amount(len(found), 'image')} could not be read in training or in this evaluation, and {left_out}."
    if len(found) > UNREADABLE_SHOWN:
        sentence += f" The first {UNREADABLE_SHOWN}:"
    rows = [[file_name(path), name_of(reason)] for path, reason in found[:UNREADABLE_SHOWN]]
    return join([tag("p", sentence), table("Unreadable images", ["file", "reason"], rows, texts=2)])


def _mean(values) -> float:
    return float(values.nanmean())
