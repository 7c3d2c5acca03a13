"""vssm resolution: a classifier on larger images than it was trained on."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vssm_cli.parsing import Parser, UsageError, parse

if TYPE_CHECKING:
    from rich.console import Console

    from vssm.inference.predictor import Predictor
    from vssm.report.resolution import Record
    from vssm.settings import DataSettings

DESCRIPTION = """\
Measures a classifier at several image sizes without training it again, as VMamba's table 9 does: top-1, with --linear
also after its last layer was trained anew on the training images at each size, multiply-adds, and images per second on
this machine. Other classifiers stand beside it (--with): windows of Swin grow with the image to size/32 patches, and
position embeddings of ViT, DeiT and Vim are resized."""

SIZES = [224, 288, 384, 512, 640, 768]
TABLES, FIGURES = (".csv", ".md"), (".png", ".pdf", ".svg")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def main(argv: list[str]) -> int:
    args = parse(_parser(), argv)
    if args is None:
        return 0
    _check(args)

    from rich.console import Console

    from vssm_cli.lines import print_line

    console, notes = Console(), Console(stderr=True)
    with notes.status("loading") as status:
        from vssm.report.resolution import Asked, study

        asked = Asked(args.sizes, args.batch_size, args.workers, args.linear, args.seconds, args.train, args.precision)
        models = _models([args.checkpoint, *args.others], args.device)
        data = _data(args.data, next(iter(models.values())))
        records = []
        for record in study(models, data, asked, lambda text: status.update(text)):
            records.append(record)
            print_line(notes, _progress(record))
    how = _how(asked, next(iter(models.values())))
    _show(console, records, how)
    for file in args.out:
        _write(records, how, Path(file))
        print_line(notes, f"wrote {file}")
    return 0


def _parser() -> Parser:
    parser = Parser("resolution", DESCRIPTION)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a run directory, a checkpoint of vssm fit, NAME=FILE for another file, or a model with published weights",
    )
    parser.add_argument(
        "data", nargs="?", metavar="DATA", help="a folder as vssm fit takes it, or digits (the run's own images)"
    )
    parser.add_argument(
        "--with", dest="others", nargs="+", default=[], metavar="MODEL", help="classifiers beside it, named likewise"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="SIDE", help="sides of square images")
    parser.add_argument("--linear", action="store_true", help="also tune the last layer at each size (linear tuning)")
    parser.add_argument(
        "--out", nargs="+", default=[], metavar="FILE", help="tables (.csv, .md) and figures (.png, .pdf, .svg)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="at the smallest size; fewer at larger sizes (64)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (0)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="of measuring per model and size; 0: no speeds (5)"
    )
    parser.add_argument("--train", action="store_true", help="also the speed of training steps without an optimizer")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true", help="of those steps (32-true)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (auto)")
    return parser


def _check(args: argparse.Namespace) -> None:
    for side in args.sizes:
        if side < 1:
            raise UsageError(f"--sizes must be at least 1, not {side}")
    for option, least in (("batch_size", 1), ("workers", 0), ("seconds", 0)):
        value = getattr(args, option)
        if not value >= least:
            raise UsageError(f"--{option.replace('_', '-')} must be at least {least}, not {value}")
    if args.train and args.seconds == 0:
        raise UsageError("--train measures speed, for which --seconds must be above 0")
    for file in map(Path, args.out):
        if file.suffix.lower() not in TABLES + FIGURES:
            raise UsageError(f"--out {file} must end in {', '.join(TABLES + FIGURES)}")
        if not file.absolute().parent.is_dir():
            raise UsageError(f"{file.parent} is not there; make the folder first")


def _models(texts: list[str], device: str) -> "dict[str, Predictor]":
    """By what to call them: the model's name, with its file where two have the same."""
    from vssm.inference.device import pick_device
    from vssm.inference.predictor import load_predictor
    from vssm.inference.subject import parse_source

    chosen = pick_device(device)
    found = []
    for text in texts:
        source = parse_source(text)
        predictor = load_predictor(source.weights, source.name).to(chosen)
        found.append((text, predictor))
    names = [predictor.name for _, predictor in found]
    return {
        predictor.name if names.count(predictor.name) == 1 else f"{predictor.name} ({text})": predictor
        for text, predictor in found
    }


def _data(text: str | None, first: "Predictor") -> "DataSettings":
    from dataclasses import replace

    from vssm.settings import DataSettings

    known = first.data or DataSettings()
    if text is None:
        if first.data is None:
            raise ValueError(f"{first.name} comes without images; name a folder of images after it, or digits")
        return known
    if text == "digits" and not Path(text).exists():
        return replace(known, name="digits", root=None, train=None, val=None, test=None)
    moved = replace(known, name=None, root=text, train=None, val=None, test=None)
    return replace(moved, name=moved.kind_of_images())


def _progress(record: "Record") -> str:
    from vssm.report.resolution import as_cells

    cells = as_cells(record)
    figures = [f"{heading} {cell}" for heading, cell in cells.items() if cell != "-"][2:]
    return f"{cells['model']} at {cells['size']}: {'; '.join(figures)}"


def _how(asked, first: "Predictor") -> str:
    """How speeds were measured, in a sentence."""
    import torch

    from vssm.train.environment import environment

    about = environment()
    device = first.device.type
    threads = f", {torch.get_num_threads()} threads of torch" if device == "cpu" else ""
    if asked.seconds == 0:
        return f"No speeds; {about['hardware']}; {about['versions']}."
    sizes = ", ".join(f"{asked.batch(size)} at {size}" for size in asked.sizes)
    trained = f", training steps without an optimizer in {asked.precision}" if asked.train else ""
    how = f"images at a time: {sizes}; float32{trained}; medians of turns; {about['versions']}"
    return f"{device}{threads}, {about['hardware']}; {how}."


def _show(console: "Console", records: "list[Record]", how: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vssm.report.resolution import as_cells, headings
    from vssm_cli.lines import print_line

    columns = headings(records)
    table = Table(box=None, padding=(0, 2, 0, 0))
    rows = [as_cells(record) for record in records]
    for column in columns:
        widest = max(len(column), *(len(row[column]) for row in rows))
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True, min_width=widest)
    for row in rows:
        table.add_row(*(escape(row[column]) for column in columns))
    # Wider than the terminal rather than with figures cut off: half a number is another number.
    needed = console.measure(table, options=console.options.update(max_width=10_000)).minimum
    Console(width=max(console.width, needed)).print(table)
    print_line(console, how, style="dim")


def _write(records: "list[Record]", how: str, path: Path) -> None:
    if path.suffix.lower() in TABLES:
        from vssm.report.resolution import write_table

        write_table(records, how, path)
        return
    from vssm.figures.resolution import draw

    draw(records, how.partition(";")[0], path)
