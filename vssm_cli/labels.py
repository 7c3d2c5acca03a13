"""vssm labels: annotations of other tools, or a COCO json itself, as COCO json; large images cut into tiles."""

import argparse
from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Reads the annotations in SRC (YOLO txt, Pascal VOC xml, LabelMe or COCO json) and writes them into OUT as COCO json:
annotations/instances_train.json, train/, and the same for val and test. Prints how many there are, what was assumed,
and what COCO json cannot hold."""
FORMATS = ("yolo", "voc", "labelme", "coco")


def main(argv: list[str]) -> int:
    parser = Parser("labels", DESCRIPTION)
    parser.add_argument(
        "source", metavar="SRC", help="folder with images and their annotations, a YOLO data.yaml, or a COCO json"
    )
    parser.add_argument("out", metavar="OUT", help="folder to create; it must be empty if it exists")
    parser.add_argument("--format", choices=FORMATS, help="format of SRC (default: found from its files)")
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.2,
        metavar="X",
        help="share of the images that validates where SRC has no splits; 0: all train (default 0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of that division (default 0)")
    parser.add_argument("--tile", type=int, metavar="SIZE", help="cut larger images into tiles of SIZE x SIZE pixels")
    parser.add_argument("--overlap", type=int, default=0, metavar="PIXELS", help="by which tiles overlap (default 0)")
    parser.add_argument(
        "--min-visible",
        type=float,
        default=0.3,
        metavar="X",
        help="least share of an object's area that a tile must hold to have the object (default 0.3)",
    )
    parser.add_argument(
        "--origin",
        type=int,
        choices=(0, 1),
        help="coordinate of the first pixel in Pascal VOC xml (default: 0 if a box has a 0, and 1 else)",
    )
    parser.add_argument("--single-class", metavar="NAME", help="give all objects this class")
    parser.add_argument("--copy", action="store_true", help="copy images, instead of linking them where possible")
    args = parse(parser, argv)
    if args is None:
        return 0
    _check(args)
    return _convert(args)


def _check(args: argparse.Namespace) -> None:
    if not 0 <= args.val_share < 1:
        raise UsageError(f"--val-share must be 0 or more and less than 1, not {args.val_share:g}")
    if args.seed < 0:
        raise UsageError(f"--seed must be at least 0, not {args.seed}")
    if args.tile is not None and args.tile < 32:
        raise UsageError(f"--tile must be at least 32, not {args.tile}")
    if args.tile is None and args.overlap:
        raise UsageError("--overlap needs --tile SIZE")
    if args.tile is not None and not 0 <= args.overlap <= args.tile // 2:
        raise UsageError(f"--overlap must be from 0 to half of --tile, not {args.overlap}")
    if not 0 < args.min_visible <= 1:
        raise UsageError(f"--min-visible must be more than 0 and at most 1, not {args.min_visible:g}")


def _convert(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from vssm_cli.lines import print_line, print_note

    errors = Console(stderr=True)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    with errors.status("reading annotations"):
        from vssm.data.labels import read_labels
        from vssm.data.labels.tiles import Tiling
        from vssm.data.labels.write import write_coco

        annotated = read_labels(Path(args.source), args.format, args.origin)
    if args.single_class:
        annotated.merge_classes(args.single_class)
    tiling = Tiling(args.tile, args.overlap, args.min_visible) if args.tile else None
    with Progress(console=errors, transient=True) as progress:
        bar = progress.add_task("writing images", total=len(annotated.images))
        written = write_coco(
            annotated, out, args.val_share, args.seed, tiling, args.copy, lambda: progress.advance(bar)
        )
    console = Console()
    for note in annotated.notes:
        print_note(console, note)
    for split, images in written.images.items():
        print_line(console, f"{split}: {images} images, {written.objects[split]} objects")
    shown = ", ".join(annotated.classes[:20]) + (", ..." if len(annotated.classes) > 20 else "")
    print_line(console, f"classes: {len(annotated.classes)} ({shown})")
    lost = annotated.lost.lines()
    print_line(console, "not carried over, or worth a look:" if lost else "everything was carried over")
    for line in lost:
        print_line(console, f"  {line}")
    print_line(console, f"written to {out}; next: vssm check {out}")
    return 0
