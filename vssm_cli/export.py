"""vssm export: a network as a file for other runtimes."""

import argparse
from pathlib import Path
from typing import Any

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Writes a classifier, a segmentation network, a Mask R-CNN, or the maps of a backbone, as a file that does not need
vssm: ONNX, torch's .pt2, or OpenVINO's .xml and .bin (Mask R-CNN: ONNX alone). The file is run in a new process
(onnxruntime, torch or OpenVINO alone) and compared with the network before it takes its place."""

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml", "aoti": ".pt2"}
SIZES = ("batch", "height", "width")
DTYPES = ("fp32", "fp16")


def main(argv: list[str]) -> int:
    parser = Parser("export", DESCRIPTION)
    parser.add_argument(
        "model", metavar="MODEL", help="a run directory, a checkpoint, NAME=FILE, or the name of a model"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write: .onnx, .pt2 or .xml (OpenVINO)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="by the ending of FILE; aoti: .pt2 in machine code",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        metavar="SIDE",
        help="side, or height and width; the model's own when not given",
    )
    parser.add_argument("--features", action="store_true", help="the maps of the stages, not the logits")
    parser.add_argument(
        "--dynamic",
        metavar="SIZES",
        help="what stays free: batch,height,width or some of them; default batch, for segmentation all",
    )
    parser.add_argument("--fixed-batch", action="store_true", help="one image at a time, of a fixed size")
    parser.add_argument(
        "--plain-ops", action="store_true", help="no Scan, for runtimes without loops; fixed image size"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="fp16: weights in half precision")
    parser.add_argument("--int8", action="store_true", help="weights of matrix products in 8 bits (.onnx)")
    args = parse(parser, argv)
    if args is None:
        return 0
    _check(args)
    return _export(args)


def _check(args: argparse.Namespace) -> None:
    suffix = Path(args.out).suffix.lower()
    if args.format is None:
        found = [name for name, ending in FORMATS.items() if ending == suffix]
        if not found:
            raise UsageError(f"--out {args.out} must end in {', '.join(dict.fromkeys(FORMATS.values()))}")
        args.format = found[0]
    elif suffix != FORMATS[args.format]:
        raise UsageError(f"--out {args.out} must end in {FORMATS[args.format]}, as --format says")
    if args.fixed_batch and args.dynamic is not None:
        raise UsageError("--fixed-batch and --dynamic say different things; choose one")
    args.free = () if args.fixed_batch else args.dynamic and tuple(args.dynamic.split(","))
    if not set(args.free or ()) <= set(SIZES):
        raise UsageError(f"--dynamic {args.dynamic}: expected {', '.join(SIZES)}, with commas between")
    if args.int8 and args.dtype == "fp16":
        raise UsageError("--int8 and --dtype fp16 say different things; choose one")
    sides = args.image_size or [1]
    if len(sides) > 2:
        raise UsageError(f"--image-size takes one side, or height and width, not {len(sides)} numbers")
    if min(sides) < 1:
        raise UsageError(f"--image-size must be at least 1, not {min(sides)}")


def _export(args: argparse.Namespace) -> int:
    import warnings

    from rich.console import Console

    from vssm_cli.lines import print_line, print_note

    console = Console()
    with console.status("loading the model"):
        from vssm.export.check import has_photographs
        from vssm.inference.predictor import Predictor, load_predictor
        from vssm.inference.subject import parse_source, read_subject
        from vssm.tasks import find_task

        source = parse_source(args.model)
        side = args.image_size[0] if args.image_size else None
        if source.weights is None or args.features:
            subject = read_subject(source, side)
            task = find_task("classification" if source.weights is None else subject.task)
            predictor = Predictor(subject.architecture, subject.model, subject.preprocess, subject.classes, task)
        else:
            predictor = load_predictor(source.weights, source.name)
            if side is not None and predictor.task.name == "classification":
                predictor = predictor.at_size(side)
    if source.weights is None:
        print_note(console, f"{predictor.name} has random weights; name a checkpoint for trained ones")
    with console.status(f"exporting {predictor.name}, minutes for a large one"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter on its own internals
        done = predictor.export(
            args.out,
            args.format,
            dynamic=args.free,
            features=args.features,
            image_size=_compared_size(args.image_size, predictor),
            plain_ops=args.plain_ops,
            dtype="int8" if args.int8 else args.dtype,
        )
    print_line(console, _summary(done))
    for one in done.checked:
        print_line(console, f"  {one}")
    if not has_photographs():
        print_note(console, "not compared on photographs: scikit-image is not installed")
    return 0


def _compared_size(sides: list[int] | None, predictor: Any) -> tuple[int, int] | None:
    """--image-size; else the network's own. Where the aspect ratio is kept, that is for segmentation the shorter side
    as a square, and for detection an image in landscape format as it is padded."""
    if sides:
        return sides[0], sides[-1]
    own = predictor.preprocess
    if not hasattr(own, "short_side"):
        return None
    if predictor.task.name != "detection":
        return own.short_side, own.short_side
    height, width = (-(-side // own.multiple) * own.multiple for side in (own.short_side, own.long_side))
    return height, width


def _summary(done: Any) -> str:
    about = done.metadata
    free = f", free: {', '.join(about.dynamic)}" if about.dynamic else ""
    share = f", {done.quantized:.0%} of the multiply-adds in int8" if done.quantized else ""
    size = "x".join(map(str, about.input_size))
    return f"{done.path}, {about.dtype}, {done.bytes / 1e6:.1f} MB, images of {size}{free}{share}"
