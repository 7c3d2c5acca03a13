"""vssm runs: list and compare runs."""

from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Lists the run directories in a folder (runs when none is given) as a table: model, data, seed, how far each came, its
best score, and the state of the code. --plot draws their learning curves. --assert-equal compares the metrics and the
final weights of two runs bit for bit: exit code 1, and the first difference, when they are not equal."""


def main(argv: list[str]) -> int:
    parser = Parser("runs", DESCRIPTION)
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="a folder with runs (default runs)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw learning curves: .png, .pdf or .svg")
    parser.add_argument("--assert-equal", nargs=2, type=Path, metavar="RUN", help="compare two runs instead")
    args = parse(parser, argv)
    if args is None:
        return 0
    if args.assert_equal and (args.folder or args.plot):
        raise UsageError("--assert-equal compares two runs and takes no other argument")
    if args.assert_equal:
        return _compare(*args.assert_equal)
    return _list(args.folder or Path("runs"), args.plot)


def _compare(one: Path, other: Path) -> int:
    from rich.console import Console

    from vssm.report.runs import first_difference
    from vssm_cli.lines import print_line

    found = first_difference(one, other)
    print_line(Console(), f"equal: {one} and {other}" if found is None else f"different: {found}")
    return 0 if found is None else 1


def _list(folder: Path, plot: Path | None) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vssm.report.runs import find_runs
    from vssm_cli.lines import print_line

    runs = find_runs(folder)
    table = Table()
    for name in ("run", "model", "data", "seed", "epochs", "step", "val loss", "score", "best", "skipped", "code"):
        table.add_column(
            name, overflow="fold", justify="right" if name in ("seed", "step", "val loss", "best") else "left"
        )
    labels = [str(run.path.relative_to(folder)) if run.path != folder else run.path.name for run in runs]
    for label, run in zip(labels, runs, strict=True):
        config = run.config
        cells = [
            label,
            config["model"]["name"],
            str(config["data"].get("root") or config["data"].get("name")),
            str(config.get("seed", 0)),
            f"{run.history.epochs}/{config['trainer']['max_epochs']}",
            str(run.history.steps),
            "" if run.val_loss is None else f"{run.val_loss:.4f}",
            run.score.removeprefix("val_"),
            "" if run.best is None else f"{run.best:.2%}",
            str(run.skipped),
            run.environment.get("git", ""),
        ]
        table.add_row(*map(Text, cells))
    console = Console()
    console.print(table)
    if plot is not None:
        from vssm.figures.curves import draw

        scores = " / ".join(sorted({run.score.removeprefix("val_") for run in runs}))
        draw([run.curves(label) for label, run in zip(labels, runs, strict=True)], scores, plot)
        print_line(console, f"wrote {plot}")
    return 0
