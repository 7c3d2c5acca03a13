"""vssm erf: how much of the image a model sees."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vssm_cli.looking import Arrays, add_arguments, check_arguments, files_of, sources_of
from vssm_cli.parsing import Parser, UsageError, parse

if TYPE_CHECKING:
    from vssm.analysis.receptive_field import ReceptiveField
    from vssm.data.image import StoredImage
    from vssm.figures.inside import Panel
    from vssm.inference.subject import Source, Subject

DESCRIPTION = """\
Draws effective receptive fields: how much every input pixel contributes to the centre of a model's last feature map,
averaged over images, as VMamba's figure 6 and Spatial-Mamba's appendix G do. Models without a checkpoint are drawn with
random weights; for a checkpoint, random weights and the trained ones stand side by side; several checkpoints of one
model become its course over a training (VMamba's figure 10). Works for any timm model with feature maps."""

DEFAULT = ["vmamba_tiny", "spatial_mamba_tiny"]
# Of VMamba's figure 6 and Spatial-Mamba's, but for HiViT, which timm does not have.
PAPER = [
    "resnet50",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "deit_small_patch16_224",
    "vim_small",
    *DEFAULT,
]
IMAGES, PAPER_IMAGES = 4, 50
SIZE = 1024


@dataclass(frozen=True)
class Cell:
    """One receptive field of the figure; `title` tells its weights."""

    title: str
    field: "ReceptiveField"


def main(argv: list[str]) -> int:
    args = parse(_parser(), argv)
    if args is None:
        return 0
    check_arguments(args)
    if args.paper and args.models is DEFAULT:
        args.models = PAPER
    if args.count is not None and args.count < 1:
        raise UsageError(f"--count must be at least 1, not {args.count}")

    from rich.console import Console

    console = Console()
    with console.status("loading"):
        from vssm_cli.lines import print_line

        files = files_of(args, args.count or (PAPER_IMAGES if args.paper else IMAGES))
        sources = sources_of(args)
    groups: dict[str, list[Cell]] = {}
    arrays = Arrays(args.npy)
    trained = False
    for source in sources:
        for subject in _subjects(source, args, groups):
            with console.status("") as status:
                field = _field(subject, files, args, status)
            groups.setdefault(subject.architecture, []).append(Cell(subject.weights, field))
            arrays.write(f"{subject.architecture}.{subject.weights}", field.map)
            trained = trained or subject.trained
            _print(console, subject, field)
    _draw(groups, trained, args)
    print_line(console, f"figure {args.out}")
    return 0


def _parser() -> Parser:
    parser = Parser("erf", DESCRIPTION)
    add_arguments(parser, DEFAULT, "erf.png", SIZE, "photographs of scikit-image")
    parser.add_argument("--stage", type=int, default=-1, metavar="N", help="which feature map, from 0 (the last)")
    parser.add_argument(
        "--count", type=int, metavar="N", help=f"images at most ({IMAGES}; with --paper {PAPER_IMAGES})"
    )
    parser.add_argument("--paper", action="store_true", help=f"as in the papers: seven models, {PAPER_IMAGES} images")
    return parser


def _subjects(source: "Source", args: argparse.Namespace, groups: dict[str, list[Cell]]):
    """A checkpoint's network before its training, unless it is there already, and after it."""
    from vssm.inference.device import pick_device
    from vssm.inference.subject import read_subject, untrained

    device = pick_device(args.device)
    first = untrained(source, args.image_size, args.seed)
    if first.architecture not in groups:
        yield first.to(device)
    del first
    if source.weights is not None:
        yield read_subject(source, args.image_size, args.seed).to(device)


def _field(
    subject: "Subject", files: "Sequence[Path | StoredImage]", args: argparse.Namespace, status
) -> "ReceptiveField":
    from vssm.analysis.receptive_field import effective_receptive_field

    def report(done: int) -> None:
        status.update(f"{subject.architecture}, {subject.weights}: {done} of {len(files)} images")

    report(0)
    images = (image for _, image in subject.images(files))
    return effective_receptive_field(subject.model, images, args.stage, progress=report)


def _print(console, subject: "Subject", field: "ReceptiveField") -> None:
    from vssm_cli.lines import print_line

    areas = ", ".join(f"{square.threshold:.0%} in {square.share:.1%}" for square in field.squares())
    skipped = f", {field.skipped} skipped" if field.skipped else ""
    images = "1 image" if field.images == 1 else f"{field.images} images"
    height, width = field.map.shape
    print_line(console, f"{subject.architecture}, {subject.weights}: {areas} of the image")
    print_line(console, f"  {height}x{width}, {images}{skipped}")


def _draw(groups: dict[str, list[Cell]], trained: bool, args: argparse.Namespace) -> None:
    from vssm.figures.inside import FIELD, Row, draw_panels

    course = max(map(len, groups.values())) > 2
    if course or (not trained and len(groups) == 1):
        rows = [Row(name, [_panel(cell, cell.title) for cell in cells]) for name, cells in groups.items()]
    else:
        rows = list(_by_model(groups, trained))
    fields = [cell.field for cells in groups.values() for cell in cells]
    fewest, most = (pick(field.images for field in fields) for pick in (min, max))
    images = "1 image" if most == 1 else f"{most} images" if fewest == most else f"{fewest} to {most} images"
    skipped = sum(field.skipped for field in fields)
    height, width = fields[0].map.shape
    stage = "last stage" if args.stage == -1 else f"stage {args.stage}"
    caption = (
        f"Gradient of the centre of the {stage}'s map with respect to the image, relu'd, summed over colours, averaged "
        f"over {images} of {height}x{width} ({skipped} skipped), to the power 0.2, over its largest value. Below each: "
        f"share of the image in the smallest central square that holds 20 / 30 / 50 / 99 % of the sum. Random weights: "
        f"seed {args.seed}."
    )
    draw_panels(rows, Path(args.out), "Effective receptive fields", caption, "contribution (power 0.2)", FIELD)


def _by_model(groups: dict[str, list[Cell]], trained: bool):
    """Models side by side, four in a row; before training above, after it below."""
    from vssm.figures.inside import Panel, Row

    names = list(groups)
    for first in range(0, len(names), 4):
        some = names[first : first + 4]
        yield Row("random weights", [_panel(groups[name][0], name) for name in some])
        if trained:
            after = [groups[name][1] if len(groups[name]) > 1 else None for name in some]
            empty = Panel(None, under="no checkpoint given")
            yield Row("trained", [empty if cell is None else _panel(cell, cell.title) for cell in after])


def _panel(cell: Cell, title: str) -> "Panel":
    from vssm.figures.inside import Panel

    shares = " / ".join(f"{100 * square.share:.1f}" for square in cell.field.squares())
    return Panel(cell.field.normalised().cpu().numpy(), _short(title), f"{shares} %")


def _short(title: str) -> str:
    return title if len(title) <= 25 else f"{title[:24]}…"
