"""vssm report: what runs learnt, how good they are and where they fail, as one page."""

from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Writes a report of a run: learning curves, accuracy, classes, confusions, calibration and the most confident mistakes,
in one HTML file that needs nothing else. With several runs: a comparison. The checkpoint (best.ckpt, else last.ckpt)
is re-evaluated on the validation images."""

COMPARISON = "comparison.html"


def main(argv: list[str]) -> int:
    parser = Parser("report", DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory of `vssm fit`")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"RUN/report.html when not given; for several runs {COMPARISON}"
    )
    parser.add_argument("--data-root", metavar="FOLDER", help="where the images lie now, when they were moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    args = parse(parser, argv)
    if args is None:
        return 0
    runs: list[Path] = args.runs
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError("a run is named twice; name every run once")

    from rich.console import Console

    from vssm.inference.run_dir import RunDir

    console = Console()
    with console.status("loading torch") as status:
        from vssm.inference.device import pick_device
        from vssm.report.write import write_report
        from vssm_cli.lines import print_line, print_note

        def progress(done: int, images: int) -> None:
            status.update(f"evaluating, {done} of {images} images")

        out = args.out or (RunDir(runs[0]).report if len(runs) == 1 else Path(COMPARISON))
        reports = write_report(runs, out, pick_device(args.device), args.data_root, progress)
    for report in reports:
        for note in report.notes:
            print_note(console, note)
        heading, value = report.task.headings[report.task.monitor], report.quality.logged()[report.task.monitor]
        line = f"{report.path}: {heading.removeprefix('%')} {value:.2%} of {report.quality.images} images"
        print_line(console, line)
    print_line(console, f"report: {out}")
    return 0
