"""vssm states: the hidden states of a scan."""

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
    subjects_of,
)
from vssm_cli.parsing import Parser, UsageError, parse

if TYPE_CHECKING:
    from torch import Tensor

    from vssm.figures.inside import Panel, Row
    from vssm.inference.subject import Subject

DESCRIPTION = """\
Draws the hidden states of a block's scan, as the scan computes them and as they are read out, behind Spatial-Mamba's
fusion and Adaptor-T (Spatial-Mamba's figure 3), averaged over channels and states or of one channel; and how the weight
of a pixel falls with its distance, with and without fusion and adaptors (Mamba-Adaptor's supplement, 4.1 and 4.2)."""


def main(argv: list[str]) -> int:
    args = parse(_parser(), argv)
    if args is None:
        return 0
    check_arguments(args)
    if args.route < 0:
        raise UsageError(f"--route must be at least 0, not {args.route}")

    from rich.console import Console

    console = Console()
    with console.status("loading"):
        from vssm.figures.inside import draw_panels
        from vssm_cli.lines import print_line

        files = files_of(args, 1 if args.images is None else None)
    rows, arrays = [], Arrays(args.npy)
    with console.status("reading scans"):
        for subject in subjects_of(args):
            for file, (pixels, image) in zip(files, subject.images(files), strict=True):
                rows.append(_row(subject, file, pixels, image, args, arrays))
    what = "averaged over channels and states" if args.channel is None else f"of channel {args.channel}"
    caption = (
        f"States of route {args.route} {what}, from the least to the largest of each panel. Decay: mean |weight| of a "
        "pixel in another one's output by distance, in the line that the route walks and from line to line, over that "
        "of a pixel in its own; dashed (alone): without fusion and adaptors."
    )
    draw_panels(rows, Path(args.out), "Hidden states", caption, "state, least to largest")
    print_line(console, f"figure {args.out}")
    return 0


def _parser() -> Parser:
    parser = Parser("states", DESCRIPTION)
    models = ["spatial_mamba_tiny", "vmamba_tiny"]
    add_arguments(parser, models, "states.png", None, "a photograph of scikit-image")
    add_block_arguments(parser, query=False)
    parser.add_argument("--route", type=int, default=0, metavar="N", help="of the scan, from 0 (the first)")
    return parser


def _row(subject: "Subject", file: Path, pixels, image, args: argparse.Namespace, arrays: Arrays) -> "Row":
    from vssm.analysis.scans import scan_of
    from vssm.analysis.states import states_of
    from vssm.figures.inside import Panel, Row

    scan = scan_of(subject.model, image, block_of(args))
    scan.find_route(args.route)
    maps = states_of(scan)
    pair = maps.mean() if args.channel is None else maps.channel(args.channel)
    before, after = (found[args.route] for found in pair)
    panels = [Panel(pixels.numpy(), file.stem), _panel(before, "before fusion")]
    fused = scan.fused is not None
    panels.append(_panel(after, "after fusion") if fused else Panel(None, under="read out as they are"))
    panels += _decay(subject, file, scan, args, arrays)
    stem = f"{subject.label}.{file.stem}"
    arrays.write(f"{stem}.before", before)
    arrays.write(f"{stem}.after", after)
    note = f"{subject.weights}, block {scan.name}, {scan.grid[0]}x{scan.grid[1]}, {scan.routes[args.route].name}"
    return Row(subject.label, panels, note)


def _decay(subject: "Subject", file: Path, scan, args: argparse.Namespace, arrays: Arrays) -> "list[Panel]":
    from vssm.analysis.activation import without_adaptors
    from vssm.analysis.states import decay_of
    from vssm.figures.inside import Curve, Panel
    from vssm.figures.style import PAIR

    if scan.class_token is not None:
        return []
    lines = []
    for label, style, read in (("", "-", scan), (", alone", "--", without_adaptors(scan))):
        if label and scan.fused is None and scan.merged is None and scan.direct is None:
            continue
        found = decay_of(read, args.route)
        for name, values, color in (("along", found.along, PAIR[0]), ("across", found.across, PAIR[1])):
            lines.append((name + label, values[0].cpu().numpy(), color, style))
            arrays.write(f"{subject.label}.{file.stem}.decay-{name}{label}", values[0])
    return [Panel(Curve(lines, "pixels"), "weight by distance")]


def _panel(found: "Tensor", title: str) -> "Panel":
    from vssm.analysis.activation import normalise
    from vssm.figures.inside import Panel

    return Panel(normalise(found).cpu().numpy(), title)
