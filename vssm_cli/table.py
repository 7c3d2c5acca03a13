"""vssm table: the papers' tables next to what is counted and measured here."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vssm_cli.parsing import Parser, UsageError, parse

if TYPE_CHECKING:
    from rich.console import Console

    from vssm.analysis.tables.table import Row, Table
    from vssm.analysis.throughput import Measured

DESCRIPTION = """\
Shows a table of the papers: parameters and multiply-adds counted here next to the printed ones, and what the paper
reports to have reached, which is never measured here. Without a name it lists the tables."""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
MEASURING = ("relative_to", "batch", "image_size", "threads", "seconds", "train", "precision", "device")


def main(argv: list[str]) -> int:
    args = parse(_parser(), argv)
    if args is None:
        return 0
    _check(args)
    if args.name is None:
        return _list()

    from vssm.analysis.tables import load_table

    whole = load_table(args.name)
    table = whole.select(args.rows) if args.rows else whole
    if args.plot is not None and table.figure is None:
        from vssm.analysis.tables import NAMES

        drawn = ", ".join(name for name in NAMES if load_table(name).figure is not None)
        raise ValueError(f"the papers draw no figure of table {table.name}; --plot goes with {drawn}")
    reference = _reference(args, whole, table) if args.measure else None
    _show(args, table, reference)
    return 0


def _parser() -> Parser:
    parser = Parser("table", DESCRIPTION)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a table; `vssm table` lists them")
    parser.add_argument(
        "--rows", nargs="+", metavar="PATTERN", help="only these rows, for example 'vmamba_*' swin_tiny"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="print comma-separated values")
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print JSON")
    form.add_argument("--markdown", dest="form", action="store_const", const="markdown", help="print Markdown")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw the paper's figure of the table")
    group = parser.add_argument_group("measuring on this machine")
    group.add_argument("--measure", action="store_true", help="add throughput and peak memory")
    group.add_argument("--relative-to", metavar="ROW", help="the row that speeds are ratios to (default: the first)")
    group.add_argument("--batch", type=int, metavar="N", help="images at a time (default 1)")
    group.add_argument("--image-size", type=int, metavar="SIDE", help="another side than the rows' own")
    group.add_argument("--threads", type=int, metavar="N", help="on the CPU (default: torch's)")
    group.add_argument("--seconds", type=float, metavar="S", help="for each row with its reference (default 10)")
    group.add_argument(
        "--train", action="store_true", default=None, help="training steps without an optimizer, in place of inference"
    )
    group.add_argument("--precision", choices=PRECISIONS, help=f"one of {', '.join(PRECISIONS)} (default 32-true)")
    group.add_argument("--device", help="auto, cpu, cuda, ... (default auto)")
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.name is None and (args.rows or args.form or args.plot or args.measure):
        raise UsageError("which table? `vssm table` lists them")
    for option in MEASURING:
        value, flag = getattr(args, option), "--" + option.replace("_", "-")
        if value is not None and not args.measure:
            raise UsageError(f"{flag} applies to measuring: add --measure")
        if isinstance(value, int | float) and not value > 0:
            raise UsageError(f"{flag} must be above 0, not {value}")
    if args.plot is not None and not args.plot.lower().endswith(".png"):
        raise UsageError(f"--plot writes a file that ends in .png, not {args.plot}")


def _list() -> int:
    from vssm.analysis.tables import NAMES, load_table

    width = max(map(len, NAMES)) + 2
    for name in NAMES:
        print(f"{name:<{width}}{load_table(name).title}")
    return 0


def _reference(args: argparse.Namespace, whole: "Table", table: "Table") -> "Row":
    """The row that speeds are ratios to: any of the table, also one that is not shown."""
    if args.image_size is not None and len({row.size for row in whole.rows}) > 1:
        raise ValueError(f"the rows of table {whole.name} differ in their image size; leave --image-size out")
    if args.relative_to is not None:
        return whole.row(args.relative_to)
    return next((row for row in table.rows if row.model is not None), table.rows[0])


def _show(args: argparse.Namespace, table: "Table", reference: "Row | None") -> None:
    from rich.console import Console

    notes = Console(stderr=True)
    with notes.status("counting"):
        from vssm.analysis.tables.count import count
        from vssm.analysis.tables.records import records

        counted = {row.name: count(row) for row in table.rows}
    measured, how = None, None
    if reference is not None:
        measured, how = _measure(args, table.rows, reference, notes)
    found = records(table, counted, measured, reference)

    from vssm_cli.tabulate import show

    show(table, found, args.form, reference.name if reference else None, how)
    if args.plot is not None:
        from vssm.figures.tables import draw

        draw(table, found, reference, Path(args.plot))
        notes.print(f"wrote {args.plot}", highlight=False)


def _measure(
    args: argparse.Namespace, rows: Sequence["Row"], reference: "Row", console: "Console"
) -> tuple[dict[str, "Measured"], str]:
    """What was measured, by row, and how, in words."""
    import torch

    from vssm.analysis.tables.measure import measure
    from vssm.analysis.throughput import Conditions
    from vssm.inference.device import pick_device

    device = pick_device(args.device or "auto").type
    conditions = Conditions(
        batch=args.batch or 1,
        image_size=args.image_size,
        threads=args.threads,
        seconds=args.seconds or 10.0,
        training=bool(args.train),
        device=device,
        precision=args.precision or "32-true",
    )
    measured: dict[str, Measured] = {}
    with console.status("measuring") as status:
        for name, found in measure(rows, reference, conditions):
            measured[name] = found
            status.update(f"measured {len(measured)} of {sum(row.model is not None for row in rows)}: {name}")
    threads = f", {conditions.threads or torch.get_num_threads()} threads" if device == "cpu" else ""
    doing = "training steps" if conditions.training else "inference"
    turns = min((found.turns for found in measured.values()), default=0)
    side = "" if conditions.image_size is None else f", {conditions.image_size} x {conditions.image_size}"
    precision = "float32" if conditions.precision == "32-true" else conditions.precision
    batch = f"{conditions.batch} at a time{side}, {precision}, {device}{threads}"
    how = f"{doing}, {batch}, medians of {turns} turns or more"
    return measured, how
