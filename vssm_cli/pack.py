"""vssm pack: a folder of images as tar shards, or a check of such shards."""

import argparse
import re
from functools import partial

from vssm_cli.parsing import Parser, Stop, UsageError, parse

DESCRIPTION = """\
Packs a folder of images, train/CLASS/ and val/CLASS/, or CLASS/ alone, into tar files of the WebDataset layout
(KEY.jpg, KEY.cls) with an index, for trainings whose images lie on network disks, http servers or object storage:
`vssm pack FOLDER OUT`, then `vssm fit --data.root OUT`. The bytes of the images stay as they are; each is read once
to see that it can be. OUT appears when all is written. `vssm pack --verify OUT` compares shards with the checksums of
their index; the exit code is 1 when any is damaged."""
_UNITS = {"": 2**20, "KB": 2**10, "MB": 2**20, "GB": 2**30}


def main(argv: list[str]) -> int:
    parser = Parser("pack", DESCRIPTION)
    parser.add_argument("folder", metavar="DIR", nargs="?", help="the images, as for `vssm fit --data.root DIR`")
    parser.add_argument("out", metavar="OUT", nargs="?", help="folder to create; it must be empty if it exists")
    parser.add_argument(
        "--shard-size", default="256MB", metavar="N[MB]", help="size of a shard in MB, KB or GB (default 256MB)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads that read images (default: one per core)")
    parser.add_argument("--verify", metavar="OUT", help="check packed shards, and pack nothing")
    args = parse(parser, argv)
    if args is None:
        return 0
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads must be at least 1, not {args.threads}")
    if args.verify is not None:
        if args.folder is not None:
            raise UsageError(f"--verify checks {args.verify} alone; leave out {args.folder}")
        return verify_shards(args.verify, args.threads)
    if args.folder is None or args.out is None:
        raise UsageError("expected two folders: vssm pack DIR OUT")
    return _pack(args, _bytes(args.shard_size))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})(|KB|MB|GB)", text.upper())
    if found is None or int(found[1]) == 0:
        raise UsageError(f"--shard-size is {text}; expected a size such as 256MB, 64KB or 2GB")
    return int(found[1]) * _UNITS[found[2]]


def _pack(args: argparse.Namespace, shard_bytes: int) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from vssm_cli.lines import print_line

    console = Console(stderr=True)
    with console.status("loading"):
        from vssm.data.shards.pack import images_of, pack

        images = images_of(args.folder)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("packing", total=images)
        written = pack(args.folder, args.out, shard_bytes, args.threads, lambda: progress.advance(bar))
    output = Console()
    for name, packed in written.items():
        shards = "1 shard" if packed.shards == 1 else f"{packed.shards} shards"
        prefix = f"{name}: " if name else ""
        print_line(output, f"{prefix}{packed.images} images in {shards}, {packed.bytes / 2**20:.1f} MB")
    print_line(output, f"written to {args.out}; next: vssm fit --data.root {args.out}")
    return 0


def verify_shards(root: str, threads: int | None, as_json: bool = False) -> int:
    """Checks the packed folders below `root`, prints what is in them, and returns the exit code."""
    import json

    from rich.console import Console
    from rich.progress import Progress

    from vssm_cli.check import print_list
    from vssm_cli.lines import print_line

    console = Console(stderr=True)
    with console.status("loading"):
        from vssm.data.shards.verify import packed_folders, verify

        folders = packed_folders(root)
    if not folders:
        raise Stop(f"{root} has no shards.json, nor have its folders train, val and test; vssm pack DIR {root}")
    found = []
    for folder in folders:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("reading shards", total=None)
            found.append(verify(folder, threads, partial(progress.advance, bar)))
    if as_json:
        plain = {
            str(one.folder): {
                "images": len(one.index),
                "shards": len(one.index.shards),
                "classes": list(one.index.classes),
                "problems": list(one.problems),
            }
            for one in found
        }
        print(json.dumps(plain, ensure_ascii=False))
        return 1 if any(one.problems for one in found) else 0
    output = Console()
    for one in found:
        shards = len(one.index.shards)
        print_line(
            output, f"{one.folder}: {len(one.index)} images of {len(one.index.classes)} classes, {shards} shards"
        )
        print_list(output, "damaged shards", list(one.problems))
    if any(one.problems for one in found):
        return 1
    print_line(output, "every shard is as it was packed")
    return 0
