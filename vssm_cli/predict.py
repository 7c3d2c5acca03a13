"""vssm predict: what is in these images?"""

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vssm_cli.comparison import compare_models
from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Names what is in images, or finds and draws their objects or regions, by what the checkpoint was trained for. Takes
files, folders (searched to the bottom), patterns in quotes ('photos/**/*.jpg'), or a list of names, one per line, on
the standard input (-) or in a file. Shards (a folder of vssm pack, or a URL) and .parquet files stand for the images in
them. Of a video (mp4, mov, avi, webm, mkv, GIF, ...) that is named, each frame is an image, called VIDEO#NUMBER, from
0. Preprocessing and class names come from the checkpoint.
The exit code is 1 when any file could not be read; the others are done all the same."""


def main(argv: list[str]) -> int:
    parser = Parser("predict", DESCRIPTION)
    parser.add_argument("images", nargs="*", metavar="IMAGE|FOLDER|PATTERN|-")
    parser.add_argument("--from-file", metavar="LIST", help="a file with one name per line; - is the standard input")
    parser.add_argument("--checkpoint", metavar="RUN_DIR|FILE", help="a run directory (its best.ckpt) or a checkpoint")
    parser.add_argument(
        "--model", metavar="NAME", help="model of a checkpoint that vssm fit did not write; alone: published weights"
    )
    parser.add_argument(
        "--adaptors",
        metavar="FILE",
        help="adaptors.safetensors of a run with --model.freeze base, on the base in --checkpoint that it started from",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes to show per image (default 5)")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side of the model's input, not the trained one"
    )
    parser.add_argument("--every", type=int, metavar="N", help="each N-th frame of a video (default 1: all)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default 32)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that read images (default: one per core)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line and image; --json-file -")
    parser.add_argument("--json-file", metavar="FILE", help="write JSON lines to a file; - is the standard output")
    parser.add_argument("--csv", metavar="FILE", help="write CSV to a file; - is the standard output")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two models side by side, each a RUN_DIR, a checkpoint, MODEL=FILE, or a MODEL with published weights",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER|PNG",
        help="a folder for pictures with what was found drawn on them (detection, segmentation); with --compare: a "
        "picture of up to 24 images, differing first",
    )
    args = parse(parser, argv)
    if args is None:
        return 0
    _check(args)
    return _predict(args)


def _check(args: argparse.Namespace) -> None:
    if args.json and args.json_file is None:
        args.json_file = "-"
    if not args.images and args.from_file is None:
        raise UsageError(
            "no images named: IMAGE|FOLDER|PATTERN, - for names on the standard input, or --from-file LIST"
        )
    if args.compare is not None:
        for name in ("checkpoint", "model", "adaptors", "csv", "json_file", "every"):
            if getattr(args, name) is not None:
                raise UsageError(
                    f"--compare names both models and prints a table; it does not go with --{name.replace('_', '-')}"
                )
    elif args.out is not None and args.out.lower().endswith(".png"):
        raise UsageError(f"--out {args.out} is the picture of --compare A B; predictions are drawn into a folder")
    elif args.out is not None and Path(args.out).is_file():
        raise UsageError(f"--out {args.out} is a file; pictures go into a folder")
    elif args.checkpoint is None and args.model is None:
        raise UsageError("nothing to predict with: --checkpoint RUN_DIR, or --model NAME for published weights")
    for name in ("top_k", "image_size", "every", "batch_size", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if args.json_file == args.csv == "-":
        raise UsageError("--json and --csv both write to the standard output; give one of them a file")


def _predict(args: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        names = _names(args, stack)
        if args.compare is not None:
            return compare_models(args, names, stack)
        with console.status("loading the model"):
            from vssm.data.sources import find_frames
            from vssm_cli.lines import print_speed
            from vssm_cli.predictions import open_writers

            predictor = _load(args)
            _check_task(args, predictor.task)
        began = time.perf_counter()
        files = find_frames(names, args.every or 1)
        found = predictor.predict_files(files, args.top_k, args.batch_size, args.threads)
        stack.callback(found.close)
        first = next(found, None)
        if first is None:
            raise ValueError(f"no images in {', '.join([*args.images, *filter(None, [args.from_file])])}")
        # Only now: a command that has nothing to write leaves an earlier file as it was.
        writers = open_writers(
            args.csv, args.json_file, args.out, predictor.classes, predictor.task, args.top_k, console, stack
        )
        done = failed = 0
        for prediction in itertools.chain([first], found):
            done, failed = done + (prediction.error is None), failed + (prediction.error is not None)
            for writer in writers:
                writer.write(prediction)
    print_speed(console, f"{done} images", failed, done + failed, began)
    return 1 if failed else 0


def _check_task(args: argparse.Namespace, task) -> None:
    if args.out is not None and task.name == "classification":
        raise UsageError(
            "--out draws what a detector or a segmentation network finds; classes go to --csv, --json-file"
        )
    if args.csv is not None and task.name == "segmentation":
        raise UsageError("--csv has no columns for a map of labels; take --json-file or --out FOLDER")


def _load(args: argparse.Namespace):
    from vssm.inference.device import pick_device
    from vssm.inference.predictor import load_predictor

    device = pick_device(args.device)
    if args.adaptors is None:
        predictor = load_predictor(args.checkpoint, args.model)
    else:
        from vssm.inference.adapted import load_adapted

        predictor = load_adapted(args.adaptors, args.checkpoint, args.model)
    if args.image_size is not None:
        predictor = predictor.at_size(args.image_size)
    return predictor.to(device)


def _names(args: argparse.Namespace, stack: contextlib.ExitStack) -> Iterator[str]:
    """What the user named, in order. A list is opened here and read as its names are asked for."""
    from vssm.data.sources import listed_names

    def listed(file: str) -> Iterator[str]:
        lines = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))  # noqa: SIM115
        return listed_names(lines)

    sources = [listed("-") if name == "-" else iter([name]) for name in args.images]
    if args.from_file is not None:
        sources.append(listed(args.from_file))
    return itertools.chain.from_iterable(sources)
