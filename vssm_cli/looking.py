"""What the commands that look inside models share: which models, which images, where to write."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vssm_cli.parsing import Parser, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from vssm.analysis.scans import BlockScan
    from vssm.data.image import StoredImage
    from vssm.figures.inside import Panel, Row
    from vssm.inference.subject import Source, Subject

MODELS = (
    "each the name of a timm model (random weights), a run directory, a checkpoint, or NAME=FILE for a checkpoint that "
    "vssm fit did not write"
)
SUFFIXES = (".png", ".pdf", ".svg")


def add_arguments(parser: Parser, models: list[str], out: str, image_size: int | None, images: str) -> None:
    """The arguments that all four commands have."""
    parser.add_argument("--models", nargs="+", default=models, metavar="MODEL", help=f"{MODELS} ({' '.join(models)})")
    parser.add_argument("--images", nargs="+", metavar="IMAGE", help=f"files, folders, patterns in quotes ({images})")
    parser.add_argument(
        "--image-size",
        type=int,
        default=image_size,
        metavar="SIDE",
        help=f"side of the network's input ({image_size or 'the size that each model was trained at'})",
    )
    parser.add_argument("--out", default=out, metavar="FILE", help=f"figure to write, .png, .pdf or .svg ({out})")
    parser.add_argument("--npy", metavar="FOLDER", help="also write every array as a .npy file")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights (0)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, ... (cpu)")


def add_block_arguments(parser: Parser, query: bool = True) -> None:
    """Those of the commands that look at one block."""
    parser.add_argument(
        "--block", metavar="BLOCK", help="its number, or STAGE.BLOCK, counted from 0 (2.1, else the middle one)"
    )
    parser.add_argument("--channel", type=int, metavar="N", help="one of the scanned channels (their mean)")
    if not query:
        return
    parser.add_argument(
        "--query", type=_query, metavar="ROW,COLUMN", help="a patch, or with points fractions: 0.3,0.7 (the centre)"
    )


def _query(text: str) -> tuple[float, float]:
    parts = text.split(",")
    try:
        row, column = (float(part) if "." in part else int(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COLUMN, such as 5,9 or 0.3,0.7") from None
    if row < 0 or column < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is outside of the map: rows and columns are counted from 0")
    return row, column


def check_arguments(args: argparse.Namespace) -> None:
    """UsageError for what cannot be, before anything is loaded."""
    if Path(args.out).suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {args.out} must end in {', '.join(SUFFIXES)}")
    if args.image_size is not None and args.image_size < 1:
        raise UsageError(f"--image-size must be at least 1, not {args.image_size}")
    if args.npy is not None and Path(args.npy).is_file():
        raise UsageError(f"--npy {args.npy} is a file; arrays go into a folder")
    for name in (args.out, args.npy):
        if name is not None and not Path(name).absolute().parent.is_dir():
            raise UsageError(f"{Path(name).parent} is not there; make the folder first")


def block_of(args: argparse.Namespace) -> int | str | None:
    return int(args.block) if args.block is not None and args.block.lstrip("-").isdigit() else args.block


def query_of(query: tuple[float, float] | None, grid: tuple[int, int]) -> tuple[int, int]:
    """The patch: as it was given, or from fractions of the image."""
    if query is None:
        return grid[0] // 2, grid[1] // 2
    row, column = (int(q * n) if isinstance(q, float) else q for q, n in zip(query, grid, strict=True))
    return row, column


def sources_of(args: argparse.Namespace) -> "list[Source]":
    from vssm.inference.subject import parse_source

    return [parse_source(text) for text in args.models]


def subjects_of(args: argparse.Namespace) -> "Iterator[Subject]":
    """The networks one after the other, so that memory holds one."""
    from vssm.inference.device import pick_device
    from vssm.inference.subject import read_subject

    device = pick_device(args.device)
    for source in sources_of(args):
        yield read_subject(source, args.image_size, args.seed).to(device)


def files_of(args: argparse.Namespace, count: int | None) -> "Sequence[Path | StoredImage]":
    """The images: those that were named, of the bundled photographs the first, at most `count` (None: all)."""
    from vssm.data.image import UnreadableImage
    from vssm.data.photographs import photographs
    from vssm.data.sources import find_files

    if args.images is None:
        return photographs(count)
    files = []
    for file in find_files(args.images):
        if isinstance(file, UnreadableImage):
            raise file
        files.append(file)
        if len(files) == count:
            break
    if not files:
        raise ValueError(f"no images in {', '.join(args.images)}")
    return files


def draw_scans(args: argparse.Namespace, row: "Callable[[View], Row]", heading: str, caption: str, bar: str) -> int:
    """The figure of a command that looks at one block: a row for each model and image."""
    from rich.console import Console

    console = Console()
    with console.status("loading"):
        from vssm.analysis.scans import scan_of
        from vssm.figures.inside import draw_panels
        from vssm_cli.lines import print_line

        files = files_of(args, 1 if args.images is None else None)
    rows, arrays = [], Arrays(args.npy)
    with console.status("reading scans"):
        for subject in subjects_of(args):
            for file, (pixels, image) in zip(files, subject.images(files), strict=True):
                scan = scan_of(subject.model, image, block_of(args))
                rows.append(row(View(args, subject, file, pixels, scan, arrays)))
    draw_panels(rows, Path(args.out), heading, caption, bar)
    print_line(console, f"figure {args.out}")
    return 0


@dataclass(frozen=True)
class View:
    """One row of a figure: the scan of a block of a model on an image. pixels (H, W, C), uint8."""

    args: argparse.Namespace
    subject: "Subject"
    file: "Path | StoredImage"
    pixels: "Tensor"
    scan: "BlockScan"
    arrays: "Arrays"

    def photograph(self, query: tuple[int, int] | None = None) -> "Panel":
        """The image, with a star on the query patch."""
        from vssm.figures.inside import Panel

        sides = zip(query or (), self.pixels.shape, self.scan.grid)
        star = tuple((2 * at + 1) * side / (2 * count) - 0.5 for at, side, count in sides)
        return Panel(self.pixels.numpy(), self.file.stem, star=star or None)  # type: ignore[arg-type]

    def row(self, panels: "Sequence[Panel]", what: str) -> "Row":
        """The panels, labelled with the model, its weights, the block and `what`."""
        from vssm.figures.inside import Row

        rows, columns = self.scan.grid
        note = f"{self.subject.weights}, block {self.scan.name}, {rows}x{columns}, {what}"
        return Row(self.subject.label, panels, note)

    def write(self, name: str, array: "Tensor") -> None:
        """The array of a panel, where --npy asks for it."""
        self.arrays.write(f"{self.subject.label}.{self.file.stem}.{name}", array)


class Arrays:
    """Every array of a figure as a .npy file in a folder; nothing without one."""

    def __init__(self, folder: str | None):
        self.folder = None if folder is None else Path(folder)

    def write(self, name: str, array: Any) -> None:
        if self.folder is None:
            return
        import numpy as np

        from vssm._writing import replacing

        self.folder.mkdir(exist_ok=True)
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
        with replacing(self.folder / f"{safe}.npy") as new, new.open("wb") as file:
            np.save(file, np.asarray(array))
