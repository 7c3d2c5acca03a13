"""vssm export: a network as a file for other runtimes."""

import argparse
from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Writes a classifier, or the maps of its stages, as a file that does not need vssm: ONNX, torch's .pt2, or OpenVINO's
.xml and .bin. The file is run in a new process (onnxruntime, torch or OpenVINO alone) and compared with the network
before it takes its place."""

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}
SIZES = ("batch", "height", "width")


def main(argv: list[str]) -> int:
    parser = Parser("export", DESCRIPTION)
    parser.add_argument(
        "model", metavar="MODEL", help="a run directory, a checkpoint, NAME=FILE, or the name of a model"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write: .onnx, .pt2 or .xml (OpenVINO)")
    parser.add_argument("--format", choices=FORMATS, help="by the ending of FILE when not given")
    parser.add_argument("--image-size", type=int, metavar="SIDE", help="the model's own when not given")
    parser.add_argument("--features", action="store_true", help="the maps of the stages, not the logits")
    parser.add_argument(
        "--dynamic", metavar="SIZES", help="what stays free: batch,height,width or some of them; default batch"
    )
    parser.add_argument("--fixed-batch", action="store_true", help="one image at a time, of a fixed size")
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
            raise UsageError(f"--out {args.out} must end in {', '.join(FORMATS.values())}")
        (args.format,) = found
    elif suffix != FORMATS[args.format]:
        raise UsageError(f"--out {args.out} must end in {FORMATS[args.format]}, as --format says")
    if args.fixed_batch and args.dynamic is not None:
        raise UsageError("--fixed-batch and --dynamic say different things; choose one")
    args.free = () if args.fixed_batch else tuple((args.dynamic or "batch").split(","))
    if not set(args.free) <= set(SIZES):
        raise UsageError(f"--dynamic {args.dynamic}: expected {', '.join(SIZES)}, with commas between")
    if args.image_size is not None and args.image_size < 1:
        raise UsageError(f"--image-size must be at least 1, not {args.image_size}")


def _export(args: argparse.Namespace) -> int:
    import warnings

    from rich.console import Console

    from vssm_cli.lines import print_line, print_note

    console = Console()
    with console.status("loading the model"):
        from vssm.export import export
        from vssm.export.check import has_photographs
        from vssm.inference.subject import parse_source, read_subject

        source = parse_source(args.model)
        subject = read_subject(source, args.image_size)
    if subject.task != "classification" and not args.features:
        raise ValueError(
            f"{args.model} is a network for {subject.task}, which cannot be exported yet; --features writes the maps "
            "of its backbone"
        )
    if not subject.trained:
        print_note(console, f"{subject.architecture} has random weights; name a checkpoint for trained ones")
    with console.status(f"exporting {subject.architecture}, minutes for a large one"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter on its own internals
        done = export(
            subject.model,
            subject.preprocess,
            args.out,
            args.format,
            args.free,
            subject.classes,
            subject.architecture,
            args.features,
        )
    print_line(console, f"{done.path}, {done.bytes / 1e6:.1f} MB, images of {'x'.join(map(str, subject.input_size))}")
    for one in done.checked:
        print_line(console, f"  {one}")
    if not has_photographs():
        print_note(console, "not compared on photographs: scikit-image is not installed")
    return 0
