"""vssm make-shapes: a generated data set for detection and segmentation."""

import argparse
from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Writes images of overlapping textured shapes (disc, square, triangle, star, ring) into DIR, with boxes and masks as COCO
json (annotations/), semantic masks (masks/) and class names (classes.txt). The same arguments give the same files."""


def main(argv: list[str]) -> int:
    parser = Parser("make-shapes", DESCRIPTION)
    parser.add_argument("folder", metavar="DIR", help="folder to create; it must be empty if it exists")
    parser.add_argument("--train", type=int, default=400, metavar="N", help="training images (default 400)")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="validation images (default 100)")
    parser.add_argument(
        "--size", default="128", metavar="SIZE", help="sides in pixels, for example 128, or 96-160 for sides in between"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything that is drawn (default 0)")
    parser.add_argument(
        "--own-colors", action="store_true", help="an easier set: each class has a color of its own, on grey"
    )
    parser.add_argument(
        "--crops",
        type=int,
        nargs="?",
        const=100,
        metavar="N",
        help="also write DIR/crops/SPLIT/CLASS/: images of 64 pixels with one shape each, for classification; N "
        "training images per class (default 100)",
    )
    args = parse(parser, argv)
    if args is None:
        return 0
    sides = _sides(args.size)
    for name, least in (("train", 1), ("val", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    if args.crops is not None and args.crops < 1:
        raise UsageError(f"--crops must be at least 1, not {args.crops}")
    return _write(args, sides)


def _write(args: argparse.Namespace, sides: tuple[int, int]) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from vssm_cli.lines import print_line

    console = Console(stderr=True)
    with console.status("loading"):
        from vssm.data.shapes import CLASSES, write_crops, write_shapes

    root = Path(args.folder)
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise ValueError(f"{root} is not empty; name a new folder")
    crops = args.crops or 0
    held = max(crops // 4, 1) if crops else 0
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("drawing", total=args.train + args.val + len(CLASSES) * (crops + held))

        def drawn() -> None:
            progress.advance(bar)

        objects = write_shapes(root, args.train, args.val, sides, args.seed, drawn, args.own_colors)
        if crops:
            write_crops(root / "crops", crops, held, seed=args.seed, progress=drawn)
    output = Console()
    for split, images in (("train", args.train), ("val", args.val)):
        print_line(output, f"{split}: {images} images, {objects[split]} objects of {len(CLASSES)} classes")
    if crops:
        print_line(output, f"crops: {crops} training and {held} validation images of each class")
    print_line(output, f"written to {root}")
    return 0


def _sides(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        low = high = 0
    if not 32 <= low <= high <= 4096:
        raise UsageError(f"--size is {text}; expected pixels from 32 to 4096, for example 128 or 96-160")
    return low, high
