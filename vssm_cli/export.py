"""vssm export: a network as a file for other runtimes."""

import argparse
from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Writes a classifier, or the maps of its stages, as an ONNX file or torch's .pt2, neither of which needs vssm. The file
is run in a new process (onnxruntime, or torch alone) and compared with the network before it takes its place."""

FORMATS = ("onnx", "pt2")


def main(argv: list[str]) -> int:
    parser = Parser("export", DESCRIPTION)
    parser.add_argument(
        "model", metavar="MODEL", help="a run directory, a checkpoint, NAME=FILE, or the name of a model"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, .onnx or .pt2")
    parser.add_argument("--format", choices=FORMATS, help="by the ending of FILE when not given")
    parser.add_argument("--image-size", type=int, metavar="SIDE", help="the model's own when not given")
    parser.add_argument("--features", action="store_true", help="the maps of the stages, not the logits")
    parser.add_argument("--fixed-batch", action="store_true", help="one image at a time; else any number")
    args = parse(parser, argv)
    if args is None:
        return 0
    _check(args)
    return _export(args)


def _check(args: argparse.Namespace) -> None:
    suffix = Path(args.out).suffix.lower().removeprefix(".")
    if args.format is None:
        if suffix not in FORMATS:
            raise UsageError(f"--out {args.out} must end in {', '.join(f'.{form}' for form in FORMATS)}")
        args.format = suffix
    elif suffix != args.format:
        raise UsageError(f"--out {args.out} must end in .{args.format}, as --format says")
    if args.image_size is not None and args.image_size < 1:
        raise UsageError(f"--image-size must be at least 1, not {args.image_size}")


def _export(args: argparse.Namespace) -> int:
    import warnings

    from rich.console import Console

    from vssm_cli.lines import print_line, print_note

    console = Console()
    with console.status("loading the model"):
        from vssm.export import export
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
            () if args.fixed_batch else ("batch",),
            subject.classes,
            subject.architecture,
            args.features,
        )
    print_line(console, f"{done.path}, {done.bytes / 1e6:.1f} MB, images of {'x'.join(map(str, subject.input_size))}")
    for one in done.checked:
        print_line(
            console,
            f"  {one.runtime}, batch {one.batch}: error {one.error:.1e}, {one.seconds * 1000:.0f} ms; eager "
            f"{one.eager * 1000:.0f} ms (one thread)",
        )
    return 0
