"""vssm matrix: the scan of a block as a matrix."""

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

    from vssm.analysis.scans import BlockScan
    from vssm.figures.inside import Row
    from vssm.inference.subject import Subject

DESCRIPTION = """\
Draws the scan of a block as the matrix M of y = M u, as attention has one: linear attention (without decay), the scan,
and the scan behind fusion and adaptors, each with the row of a query patch on the image (Spatial-Mamba's figure 5).
The arrow points at the row, the star at the patch."""

# Pixels of a map: a matrix of 4096 x 4096 is 134 MB.
LARGEST = 4096
POWER = 0.3


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
    with console.status("computing matrices"):
        for subject in subjects_of(args):
            for file, (pixels, image) in zip(files, subject.images(files), strict=True):
                rows.append(_row(subject, file, pixels, image, args, arrays))
    channels = "averaged over channels" if args.channel is None else f"of channel {args.channel}"
    caption = (
        f"Matrices {channels}, rows and columns in raster order; |weight| over the largest of each panel, to the power "
        f"{POWER}. Linear attention: C B of the same block, without dt and decay. Scan: y = M u without the skip D."
    )
    draw_panels(rows, Path(args.out), "Scans as matrices", caption, f"|weight| / largest (power {POWER})")
    print_line(console, f"figure {args.out}")
    return 0


def _parser() -> Parser:
    parser = Parser("matrix", DESCRIPTION)
    models = ["vmamba_tiny", "spatial_mamba_tiny"]
    add_arguments(parser, models, "matrix.png", None, "a photograph of scikit-image")
    add_block_arguments(parser)
    parser.add_argument("--route", type=int, metavar="N", help="one route, from 0 (the sum of all)")
    return parser


def _row(subject: "Subject", file: Path, pixels, image, args: argparse.Namespace, arrays: Arrays) -> "Row":
    from vssm.analysis.activation import without_adaptors
    from vssm.analysis.scans import scan_of
    from vssm.figures.inside import Panel, Row

    scan = scan_of(subject.model, image, block_of(args))
    L = scan.size[0] * scan.size[1]
    if L > LARGEST:
        raise ValueError(
            f"block {scan.name} works on {scan.size[0]} x {scan.size[1]} = {L} pixels; its matrix would be too large "
            f"to look at (at most {LARGEST}); take a later block, or a smaller --image-size"
        )
    query = query_of(args.query, scan.grid)
    at = scan.position(query)
    on_pixels = tuple((2 * q + 1) * side / (2 * n) - 0.5 for q, side, n in zip(query, pixels.shape, scan.grid))
    panels = [Panel(pixels.numpy(), file.stem, star=on_pixels)]
    alone = without_adaptors(scan)
    views = [("linear attention", alone, "qk"), ("scan", alone, "scan")]
    if scan.fused is not None or scan.merged is not None or scan.direct is not None:
        views.append(("scan and fusion", scan, "scan"))
    matrices = [(title, _matrix(read, args, weights)) for title, read, weights in views]
    for title, M in matrices:
        panels.append(Panel(_scaled(M), title, arrow=at, power=POWER))
        arrays.write(f"{subject.label}.{file.stem}.{title}", M)
    for title, M in matrices:
        panels.append(Panel(_scaled(scan.on_image(M[at])), f"row: {title}", star=query, power=POWER))
    note = f"{subject.weights}, block {scan.name}, {scan.grid[0]}x{scan.grid[1]}, query {query[0]},{query[1]}"
    return Row(subject.label, panels, note)


def _matrix(scan: "BlockScan", args: argparse.Namespace, weights: str) -> "Tensor":
    import torch

    from vssm.analysis.matrices import mixing_rows

    return torch.cat(list(mixing_rows(scan, None, args.route, args.channel, weights, skip=False)))


def _scaled(found: "Tensor"):
    from vssm.analysis.activation import normalise

    return normalise(found, "abs").cpu().numpy()
