"""vssm matrix: the scan of a block as a matrix."""

import argparse
from typing import TYPE_CHECKING

from vssm_cli.looking import View, add_arguments, add_block_arguments, check_arguments, draw_scans, query_of
from vssm_cli.parsing import Parser, parse

if TYPE_CHECKING:
    from torch import Tensor

    from vssm.analysis.scans import BlockScan
    from vssm.figures.inside import Row

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

    channels = "averaged over channels" if args.channel is None else f"of channel {args.channel}"
    caption = (
        f"Matrices {channels}, rows and columns in raster order; |weight| over the largest of each panel, to the power "
        f"{POWER}. Linear attention: C B of the same block, without dt and decay. Scan: y = M u without the skip D."
    )
    return draw_scans(args, _row, "Scans as matrices", caption, f"|weight| / largest (power {POWER})")


def _parser() -> Parser:
    parser = Parser("matrix", DESCRIPTION)
    models = ["vmamba_tiny", "spatial_mamba_tiny"]
    add_arguments(parser, models, "matrix.png", None, "a photograph of scikit-image")
    add_block_arguments(parser)
    parser.add_argument("--route", type=int, metavar="N", help="one route, from 0 (the sum of all)")
    return parser


def _row(view: View) -> "Row":
    from vssm.analysis.activation import without_adaptors
    from vssm.figures.inside import Panel

    args, scan = view.args, view.scan
    L = scan.size[0] * scan.size[1]
    if L > LARGEST:
        raise ValueError(
            f"block {scan.name} works on {scan.size[0]} x {scan.size[1]} = {L} pixels; its matrix would be too large "
            f"to look at (at most {LARGEST}); take a later block, or a smaller --image-size"
        )
    query = query_of(args.query, scan.grid)
    at = scan.position(query)
    panels = [view.photograph(query)]
    alone = without_adaptors(scan)
    views = [("linear attention", alone, "qk"), ("scan", alone, "scan")]
    if scan.changed:
        views.append(("scan and fusion", scan, "scan"))
    matrices = [(title, _matrix(read, args, weights)) for title, read, weights in views]
    for title, M in matrices:
        panels.append(Panel(_scaled(M), title, arrow=at, power=POWER))
        view.write(title, M)
    for title, M in matrices:
        panels.append(Panel(_scaled(scan.on_image(M[at])), f"row: {title}", star=query, power=POWER))
    return view.row(panels, f"query {query[0]},{query[1]}")


def _matrix(scan: "BlockScan", args: argparse.Namespace, weights: str) -> "Tensor":
    import torch

    from vssm.analysis.matrices import mixing_rows

    return torch.cat(list(mixing_rows(scan, None, args.route, args.channel, weights, skip=False)))


def _scaled(found: "Tensor"):
    from vssm.analysis.activation import normalise

    return normalise(found, "abs").cpu().numpy()
