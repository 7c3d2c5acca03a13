"""vssm weights: the catalogue of published weights."""

import argparse
from fnmatch import fnmatch
from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, nearest, parse

DESCRIPTION = """\
`vssm weights list [PATTERN]` shows the weights that the authors publish: the figures of their papers, the licence, and
where each file is. `vssm weights get NAME ...` downloads them into the cache and prints the paths. A download that was
interrupted goes on where it stopped. The SHA-256 of a file is checked against what its publisher states, or else
recorded at the first download and checked from then on. VSSM_OFFLINE=1 or HF_HUB_OFFLINE=1 forbids downloads."""

ACTIONS = ("list", "get")


def main(argv: list[str]) -> int:
    parser = Parser("weights", DESCRIPTION)
    parser.add_argument("action", metavar="ACTION", help="list or get")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a pattern for list, names for get")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where files are kept; torch's cache when not given"
    )
    args = parse(parser, argv)
    if args is None:
        return 0
    if args.action not in ACTIONS:
        raise UsageError(f"vssm weights has no action {args.action!r}{nearest(args.action, ACTIONS)}; list or get")
    if args.action == "get":
        if not args.names:
            raise UsageError("vssm weights get needs names, for example vmamba_tiny; `vssm weights list` shows them")
        return _get(args)
    return _list(args)


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from vssm.weights import list_published
    from vssm.weights.download import cached_path

    patterns = args.names or ["*"]
    shown = {name: w for name, w in list_published().items() if any(fnmatch(name, pattern) for pattern in patterns)}
    if not shown:
        raise ValueError(f"the catalogue has no weights {patterns[0]!r}{nearest(patterns[0], list_published())}")
    table = Table("name", "published figures", "licence", "file")
    for name, weights in shown.items():
        figures = ", ".join(f"{metric} {value}" for metric, value in weights.metrics.items())
        where = f"by hand: {weights.page}"
        if weights.url is not None:
            path = cached_path(weights.url, args.cache)
            where = f"{weights.url.rpartition('/')[2]}{' (in the cache)' if path.exists() else ''}"
        table.add_row(name, figures, weights.license, where)
    Console().print(table)
    return 0


def _get(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from vssm.weights import fetch_published, find_published
    from vssm_cli.lines import print_line

    console = Console()
    for name in args.names:  # before the first byte of the first file
        find_published(name)
    for name in args.names:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=None)
            path = fetch_published(
                name, args.cache, lambda done, total, task=task: bar.update(task, completed=done, total=total)
            )
        print_line(console, str(path))
    return 0
