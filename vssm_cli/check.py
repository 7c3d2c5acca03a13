"""vssm check: is this folder of images fit for a long training?"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Reads every image of a folder once, as `vssm fit --data.root FOLDER` would split it, with all cores: what cannot be
read, images per class, sizes and kinds, files with the same bytes in training and validation or in two classes.
Of data for detection (COCO json) and segmentation (masks) it reads the annotations too: boxes outside of their image,
ids that are there twice, classes without objects, sizes that differ from the image, values of masks that are no class.
Of shards that `vssm pack` wrote it compares the checksums.
The exit code is 1 when any of that has to be repaired."""
SHOWN = 10
CLASSES_SHOWN = 20


def main(argv: list[str]) -> int:
    parser = Parser("check", DESCRIPTION)
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="with train/CLASS/ and val/CLASS/, or CLASS/ alone; or images with COCO json or masks",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads that read images (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every file, instead of tables")
    args = parse(parser, argv)
    if args is None:
        return 0
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads must be at least 1, not {args.threads}")
    return _check(args)


def _check(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import track

    from vssm_cli.lines import print_note

    console = Console(stderr=args.json)
    with Console(stderr=True).status("loading"):
        from vssm.data.shards.verify import packed_folders

        packed = packed_folders(args.folder)
    if packed:
        from vssm_cli.pack import verify_shards

        return verify_shards(args.folder, args.threads, args.json)
    with Console(stderr=True).status("loading"):
        from vssm.data.layouts import find_layouts

        layouts = [layout for layout in find_layouts(args.folder) if layout.task != "classification"]
        if layouts:
            from vssm_cli.check_annotated import check_annotated
    if layouts:
        return check_annotated(layouts, args.threads, args.json)
    with Console(stderr=True).status("loading"):
        from vssm.data.imagefolder import ImageFolder
        from vssm.data.inspection import inspect_images, summarise
        from vssm.data.preprocess import Preprocess
        from vssm.data.splits import load_splits
        from vssm.settings import DataSettings

    preprocess = Preprocess((3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)  # any will do: files are listed only
    found = load_splits(DataSettings("imagefolder", root=args.folder), preprocess)
    assert isinstance(found.train, ImageFolder) and isinstance(found.val, ImageFolder)
    splits: dict[str, Sequence[tuple[Path, int]]] = {"train": found.train.samples, "val": found.val.samples}
    if (Path(args.folder) / "test").is_dir():
        splits["test"] = ImageFolder(Path(args.folder) / "test", found.val.transform, classes=found.classes).samples
    paths = [path for samples in splits.values() for path, _ in samples]
    facts = track(
        inspect_images(paths, args.threads),
        "reading images",
        len(paths),
        console=Console(stderr=True),
        transient=True,
    )
    inspection = summarise(splits, facts, len(found.classes))
    for note in found.notes:
        print_note(console, note)
    if args.json:
        print(json.dumps(_plain(inspection, found.classes), ensure_ascii=False))
    else:
        _print(inspection, found.classes, console)
    return 0 if inspection.clean else 1


def _plain(inspection, classes: tuple[str, ...]) -> dict[str, object]:
    from vssm.data.files import plain_name

    return {
        "counts": {name: dict(zip(classes, counts, strict=True)) for name, counts in inspection.counts.items()},
        "kinds": dict(inspection.kinds),
        "unreadable": [{"path": plain_name(path), "reason": reason} for path, reason in inspection.unreadable],
        "in_several_splits": [list(map(plain_name, group)) for group in inspection.leaks],
        "in_several_classes": [list(map(plain_name, group)) for group in inspection.conflicts],
        "copies": inspection.copies,
    }


def _print(inspection, classes: tuple[str, ...], console) -> None:
    from rich.table import Table
    from rich.text import Text

    from vssm.data.files import printable_name
    from vssm_cli.lines import print_line

    table = Table("class")
    for split in inspection.counts:
        table.add_column(split, justify="right")
    rows = dict(zip(classes, zip(*inspection.counts.values(), strict=True), strict=True))
    if len(classes) > CLASSES_SHOWN:
        smallest = sorted(rows, key=lambda name: rows[name][0])
        rows = {f"smallest: {smallest[0]}": rows[smallest[0]], f"largest: {smallest[-1]}": rows[smallest[-1]]}
    for name, counts in rows.items():
        table.add_row(Text(name), *map(str, counts))
    table.add_section()
    table.add_row(f"all {len(classes)} classes", *(str(sum(counts)) for counts in inspection.counts.values()))
    console.print(table)

    sides = inspection.short_sides
    if sides:
        middle = sides[len(sides) // 2]
        console.print(f"shorter side: {sides[0]} to {sides[-1]} pixels, median {middle}", highlight=False)
    kinds = ", ".join(f"{kind} {count}" for kind, count in inspection.kinds.most_common())
    print_line(console, f"kinds: {kinds}")
    if inspection.copies:
        words = "file repeats another of its" if inspection.copies == 1 else "files repeat another of their"
        console.print(f"{inspection.copies} {words} class and split, to the byte", highlight=False)
    print_list(
        console, "images cannot be read", [f"{printable_name(path)}: {why}" for path, why in inspection.unreadable]
    )
    for what, groups in (
        ("images in more than one split, to the byte", inspection.leaks),
        ("images in more than one class, to the byte", inspection.conflicts),
    ):
        print_list(console, what, [" = ".join(map(printable_name, group)) for group in groups])
    if inspection.clean:
        console.print("every image can be read; no image is in two splits or in two classes")


def print_list(console, what: str, lines: list[str]) -> None:
    from vssm_cli.lines import print_line

    if not lines:
        return
    what = what.replace("images", "image", 1) if len(lines) == 1 else what
    console.print(f"[red]{len(lines)}[/] {what}:", highlight=False)
    for line in lines[:SHOWN]:
        print_line(console, f"  {line}")
    if len(lines) > SHOWN:
        console.print(f"  and {len(lines) - SHOWN} more", highlight=False)
