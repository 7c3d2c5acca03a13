"""vssm activation: what a patch takes from the others."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vssm_cli.looking import (
    Arrays,
    add_arguments,
    add_block_arguments,
    block_of,
    check_arguments,
    files_of,
    query_of,
    subjects_of,
)
from vssm_cli.parsing import Parser, parse

if TYPE_CHECKING:
    from torch import Tensor

    from vssm.figures.inside import Panel, Row
    from vssm.inference.subject import Subject

DESCRIPTION = """\
Draws activation maps: the row of a query patch (the star) in the matrix of a block's scan, put back on the image, as
VMamba's figures 5 and 9 do: combined over the routes, and for each route; and the diagonal, what each patch takes from
itself. For VMamba, Spatial-Mamba, Vim and Mamba-Adaptor."""

WEIGHTS = {"qk": r"$QK^T$", "decayed_qk": r"$(Q\odot w)(K/w)^T$", "scan": r"$M$", "decay": r"$w/w$"}


def main(argv: list[str]) -> int:
    args = parse(_parser(), argv)
    if args is None:
        return 0
    check_arguments(args)

    from rich.console import Console

    console = Console()
    with console.status("loading"):
        from vssm.figures.inside import draw_panels
        from vssm_cli.lines import print_line

        files = files_of(args, 1 if args.images is None else None)
    rows, arrays = [], Arrays(args.npy)
    with console.status("reading scans"):
        for subject in subjects_of(args):
            rows += [
                _row(subject, file, pixels, image, args, arrays) for file, pixels, image in _images(subject, files)
            ]
    caption = (
        "Row of the patch at the star, averaged over channels" if args.channel is None else f"Channel {args.channel}"
    )
    kinds = ", ".join(f"{name} = {_plain(name)}" for name in args.weights)
    caption += (
        f"; {kinds}. Routes: {args.weights[-1]}. Every panel is |weight| over its own largest. Queries are patches, "
        "counted from 0; the diagonal is what each patch takes from itself."
    )
    draw_panels(rows, Path(args.out), "Activation maps", caption, "|weight| / largest")
    print_line(console, f"figure {args.out}")
    return 0


def _parser() -> Parser:
    parser = Parser("activation", DESCRIPTION)
    add_arguments(parser, ["vmamba_tiny"], "activation.png", None, "a photograph of scikit-image")
    add_block_arguments(parser)
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=WEIGHTS,
        default=["qk", "decayed_qk"],
        help="which weights to combine; the last one is shown by route (qk decayed_qk)",
    )
    return parser


def _images(subject: "Subject", files: list[Path]):
    for file, (pixels, image) in zip(files, subject.images(files), strict=True):
        yield file, pixels, image


def _row(subject: "Subject", file: Path, pixels, image, args: argparse.Namespace, arrays: Arrays) -> "Row":
    from vssm.analysis.activation import activation_of, diagonal_of
    from vssm.analysis.scans import scan_of
    from vssm.figures.inside import Panel, Row

    scan = scan_of(subject.model, image, block_of(args))
    query = query_of(args.query, scan.grid)
    on_pixels = tuple((2 * q + 1) * side / (2 * n) - 0.5 for q, side, n in zip(query, pixels.shape, scan.grid))
    panels = [Panel(pixels.numpy(), file.stem, star=on_pixels)]
    last = None
    for kind in args.weights:
        last = activation_of(scan, query, kind, args.channel)
        if last.combined is not None:
            panels.append(_panel(last.combined, f"{WEIGHTS[kind]} all routes", query))
            arrays.write(f"{subject.label}.{file.stem}.{kind}.combined", last.combined)
    assert last is not None
    for name, found in zip(last.names, last.routes, strict=True):
        panels.append(_panel(found, name, query))
        arrays.write(f"{subject.label}.{file.stem}.{args.weights[-1]}.{name}", found)
    diagonal = diagonal_of(scan, args.weights[-1], args.channel)
    if diagonal.combined is not None:
        panels.append(_panel(diagonal.combined, "diagonal", None))
        arrays.write(f"{subject.label}.{file.stem}.{args.weights[-1]}.diagonal", diagonal.combined)
    note = f"{subject.weights}, block {scan.name}, {scan.grid[0]}x{scan.grid[1]}, query {query[0]},{query[1]}"
    return Row(subject.label, panels, note)


def _panel(found: "Tensor", title: str, query: tuple[int, int] | None) -> "Panel":
    from vssm.analysis.activation import normalise
    from vssm.figures.inside import Panel

    return Panel(normalise(found, "abs").cpu().numpy(), title, star=query)


def _plain(name: str) -> str:
    return {
        "qk": "C B (linear attention)",
        "decayed_qk": "C B times the decay between both patches",
        "scan": "what the scan weighs: C dt B times the decay",
        "decay": "the decay alone",
    }[name]
