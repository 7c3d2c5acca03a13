"""vssm states: the hidden states of a scan."""

from typing import TYPE_CHECKING

from vssm_cli.looking import View, add_arguments, add_block_arguments, check_arguments, draw_scans
from vssm_cli.parsing import Parser, UsageError, parse

if TYPE_CHECKING:
    from torch import Tensor

    from vssm.figures.inside import Panel, Row

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

    what = "averaged over channels and states" if args.channel is None else f"of channel {args.channel}"
    caption = (
        f"States of route {args.route} {what}, from the least to the largest of each panel. Decay: mean |weight| of a "
        "pixel in another one's output by distance, in the line that the route walks and from line to line, over that "
        "of a pixel in its own; dashed (alone): without fusion and adaptors."
    )
    return draw_scans(args, _row, "Hidden states", caption, "state, least to largest")


def _parser() -> Parser:
    parser = Parser("states", DESCRIPTION)
    models = ["spatial_mamba_tiny", "vmamba_tiny"]
    add_arguments(parser, models, "states.png", None, "a photograph of scikit-image")
    add_block_arguments(parser, query=False)
    parser.add_argument("--route", type=int, default=0, metavar="N", help="of the scan, from 0 (the first)")
    return parser


def _row(view: View) -> "Row":
    from vssm.analysis.states import states_of
    from vssm.figures.inside import Panel

    args, scan = view.args, view.scan
    route = scan.find_route(args.route)
    maps = states_of(scan)
    pair = maps.mean() if args.channel is None else maps.channel(args.channel)
    before, after = (found[route] for found in pair)
    panels = [view.photograph(), _panel(before, "before fusion")]
    fused = scan.fused is not None
    panels.append(_panel(after, "after fusion") if fused else Panel(None, under="read out as they are"))
    panels += _decay(view, route)
    view.write("before", before)
    view.write("after", after)
    return view.row(panels, scan.routes[route].name)


def _decay(view: View, route: int) -> "list[Panel]":
    from vssm.analysis.activation import without_adaptors
    from vssm.analysis.states import decay_of
    from vssm.figures.inside import Curve, Panel
    from vssm.figures.style import PAIR

    scan = view.scan
    if scan.class_token is not None:
        return []
    reads = [("", "-", scan)]
    if scan.changed:
        reads.append((", alone", "--", without_adaptors(scan)))
    lines = []
    for label, style, read in reads:
        found = decay_of(read, route)
        for name, values, color in (("along", found.along, PAIR[0]), ("across", found.across, PAIR[1])):
            lines.append((name + label, values[0].cpu().numpy(), color, style))
            view.write(f"decay-{name}{label}", values[0])
    return [Panel(Curve(lines, "pixels"), "weight by distance")]


def _panel(found: "Tensor", title: str) -> "Panel":
    from vssm.analysis.activation import normalise
    from vssm.figures.inside import Panel

    return Panel(normalise(found).cpu().numpy(), title)
