"""vssm predict: what is in these images?"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from vssm.cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Names what is in an image, or in every image of a folder. Preprocessing and class names come from the checkpoint.
The exit code is 1 when any file could not be read; the others are done all the same."""


def main(argv: list[str]) -> int:
    parser = Parser("predict", DESCRIPTION)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER")
    parser.add_argument("--checkpoint", metavar="RUN_DIR|FILE", help="a run directory (its best.ckpt) or a checkpoint")
    parser.add_argument(
        "--model", metavar="NAME", help="model of a checkpoint from elsewhere; alone: published weights"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes to show per image (default 5)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line and image")
    args = parse(parser, argv)
    if args is None:
        return 0
    if args.checkpoint is None and args.model is None:
        raise UsageError("nothing to predict with: --checkpoint RUN_DIR, or --model NAME for published weights")
    for name in ("top_k", "batch_size"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    return _predict(args)


def _predict(args: argparse.Namespace) -> int:
    from vssm.cli.device import pick_device
    from vssm.train.predict import predict

    model, preprocess, classes = _load(args)
    model = model.to(pick_device(args.device)).eval()
    predictions = predict(model, preprocess, classes, _files(args.images), args.top_k, args.batch_size)
    done, failed = (_print_json if args.json else _print_table)(predictions)
    if done + failed == 0:
        raise ValueError(f"no images in {', '.join(map(str, args.images))}")
    return 1 if failed else 0


def _load(args: argparse.Namespace):
    """Model, preprocessing and class names, from a checkpoint of ours, from another with --model, or published."""
    from vssm.train.checkpoint import is_ours, load_weights, read_checkpoint

    if args.checkpoint is not None and (args.model is None or is_ours(args.checkpoint)):
        stored = read_checkpoint(args.checkpoint)
        if args.model not in (None, stored.settings.model.name):
            raise ValueError(f"{args.checkpoint} holds a {stored.settings.model.name}, not a {args.model}")
        return stored.create_model(), stored.preprocess, stored.classes

    from vssm.data.preprocess import published_preprocess
    from vssm.tasks.classification import class_names, create_classifier

    model = create_classifier(args.model, pretrained=args.checkpoint is None)
    if args.checkpoint is not None:
        load_weights(model, args.checkpoint)
    return model, published_preprocess(args.model), class_names(model)


def _files(paths: list[Path]) -> Iterator[Path]:
    from vssm.data.files import image_files

    for path in paths:
        if path.is_dir():
            yield from image_files(path)
        else:
            yield path


def _print_json(predictions) -> tuple[int, int]:
    done = failed = 0
    for prediction in predictions:
        line: dict[str, object] = {"path": str(prediction.path)}
        if prediction.error is None:
            done += 1
            line["classes"] = [{"name": name, "probability": p} for name, p in prediction.classes]
        else:
            failed += 1
            line["error"] = prediction.error
        print(json.dumps(line, ensure_ascii=False), flush=True)
    return done, failed


def _print_table(predictions) -> tuple[int, int]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("image", overflow="fold", min_width=16)
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("next")
    done = failed = 0
    for prediction in predictions:
        path = Text(str(prediction.path))
        if prediction.error is not None:
            failed += 1
            table.add_row(path, Text(prediction.error, style="red"), "", "")
            continue
        done += 1
        (name, probability), *others = prediction.classes
        following = ", ".join(f"{other} {p:.1%}" for other, p in others)
        table.add_row(path, Text(name, style="bold"), f"{probability:.1%}", Text(following, style="dim"))
    if done + failed:
        console = Console()
        console.print(table)
        if failed:
            console.print(f"{failed} of {done + failed} files could not be read", style="red")
    return done, failed
