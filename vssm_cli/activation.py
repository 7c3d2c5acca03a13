"""vssm activation: what a patch takes from the others."""

from typing import TYPE_CHECKING

from vssm_cli.looking import View, add_arguments, add_block_arguments, check_arguments, draw_scans, query_of
from vssm_cli.parsing import Parser, parse

if TYPE_CHECKING:
    from torch import Tensor

    from vssm.figures.inside import Panel, Row

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

    caption = (
        "Row of the patch at the star, averaged over channels" if args.channel is None else f"Channel {args.channel}"
    )
    kinds = ", ".join(f"{name} = {_plain(name)}" for name in args.weights)
    caption += (
        f"; {kinds}. Routes: {args.weights[-1]}. Every panel is |weight| over its own largest. Queries are patches, "
        "counted from 0; the diagonal is what each patch takes from itself."
    )
    return draw_scans(args, _row, "Activation maps", caption, "|weight| / largest")


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


def _row(view: View) -> "Row":
    from vssm.analysis.activation import activation_of, diagonal_of

    args, scan = view.args, view.scan
    query = query_of(args.query, scan.grid)
    panels = [view.photograph(query)]
    maps = {kind: activation_of(scan, query, kind, args.channel) for kind in args.weights}
    for kind, found in maps.items():
        if found.combined is not None:
            panels.append(_panel(found.combined, f"{WEIGHTS[kind]} all routes", query))
            view.write(f"{kind}.combined", found.combined)
    last = args.weights[-1]
    for name, found in zip(maps[last].names, maps[last].routes, strict=True):
        panels.append(_panel(found, name, query))
        view.write(f"{last}.{name}", found)
    diagonal = diagonal_of(scan, last, args.channel)
    if diagonal.combined is not None:
        panels.append(_panel(diagonal.combined, "diagonal", None))
        view.write(f"{last}.diagonal", diagonal.combined)
    return view.row(panels, f"query {query[0]},{query[1]}")


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
