"""vssm plan: what a training on several devices will take."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from vssm_cli.parsing import Parser, UsageError, parse

if TYPE_CHECKING:
    from vssm.train.forecast import Asked, Figures, Forecast

DESCRIPTION = """\
Estimates a training of a classifier on several devices: time, memory, bytes of the all-reduce, and the images per
second that the loaders must give, against what one core gives here. The speed of one device is measured by a short run
on this machine's, or given with --images-per-second. Assumptions are printed."""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
POLICY = "rand-m9-mstd0.5-inc1"
AT_LEAST_1 = ("data_size", "gpus", "batch_size", "epochs", "image_size")
ABOVE_0 = ("images_per_second", "loader_images_per_second", "bandwidth", "seconds")


def main(argv: list[str]) -> int:
    args = parse(_parser(), argv)
    if args is None:
        return 0
    _check(args)

    from rich.console import Console

    with Console(stderr=True).status("loading") as status:
        from vssm.tasks.classification import check_model_name
        from vssm.train.forecast import Asked, forecast

        bandwidth = None if args.bandwidth is None else args.bandwidth * 1e9
        asked = Asked(args.data_size, args.gpus, args.batch_size, args.epochs, bandwidth)
        check_model_name(args.model)
        figures, how = _figures(args, status)
        found = forecast(asked, figures)
    assumed = _assumed(args, how)
    if args.json:
        parts = {"asked": asked, "figures": figures, "forecast": found}
        plain: dict[str, Any] = {name: dataclasses.asdict(part) for name, part in parts.items()}
        print(json.dumps(plain | {"model": args.model, "image_size": args.image_size, "assumed": assumed}))
    else:
        _show(args, asked, figures, found, assumed)
    return 0


def _parser() -> Parser:
    parser = Parser("plan", DESCRIPTION)
    parser.add_argument("--model", required=True, metavar="NAME", help="any timm model; `vssm models` lists ours")
    parser.add_argument("--data-size", type=int, required=True, metavar="N", help="training images (ImageNet: 1281167)")
    parser.add_argument("--gpus", type=int, default=1, metavar="G", help="devices (1)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="images per device and step (128)")
    parser.add_argument("--epochs", type=int, default=300, metavar="N", help="passes over the images (300)")
    parser.add_argument("--image-size", type=int, default=224, metavar="SIDE", help="side of the images (224)")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true", help="of the training (32-true)")
    group = parser.add_argument_group("figures that are measured here when not given")
    group.add_argument("--images-per-second", type=float, metavar="X", help="of training on one device")
    group.add_argument("--loader-images-per-second", type=float, metavar="X", help="read and augmented by one core")
    group.add_argument("--device", default="auto", help="to measure on: auto, cpu, cuda, ... (auto)")
    group.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of measuring the device (10)")
    parser.add_argument(
        "--bandwidth",
        type=float,
        metavar="GB/S",
        help="10^9 bytes per second that a device sends in an all-reduce; without it, the all-reduce takes no time",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    return parser


def _check(args: argparse.Namespace) -> None:
    for name in AT_LEAST_1:
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ABOVE_0:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    if args.data_size < args.gpus * args.batch_size:
        raise UsageError(
            f"--data-size {args.data_size} is less than one step of {args.gpus} x {args.batch_size} images; "
            "a smaller --batch-size, or fewer --gpus"
        )


def _figures(args: argparse.Namespace, status) -> "tuple[Figures, list[str]]":
    """Measured or given, and how, in sentences."""
    import torch

    from vssm.inference.device import pick_device
    from vssm.settings import PRECISIONS as DTYPES
    from vssm.train.environment import environment
    from vssm.train.forecast import Figures, measure_device, measure_loader, memory_of

    how = []
    if args.images_per_second is None:
        status.update(f"measuring training steps of {args.model}")
        device = pick_device(args.device)
        speed, batch = measure_device(
            args.model, args.image_size, args.batch_size, args.precision, device, args.seconds
        )
        threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        how.append(
            f"A device trains {speed:.4g} images/s: measured here on {device.type}{threads}, {batch} at a time, random "
            f"images ({environment()['hardware']})."
        )
    else:
        speed = args.images_per_second
        how.append(f"A device trains {speed:.4g} images/s: given.")
    if args.loader_images_per_second is None:
        status.update("measuring a loader")
        loader = measure_loader(args.model, args.image_size, POLICY)
        how.append(
            f"One loader core gives {loader:.4g} images/s: measured here in processor time, JPEGs of 500 x 375 in "
            f"memory, {POLICY} and random erasing; disk and network come on top."
        )
    else:
        loader = args.loader_images_per_second
        how.append(f"One loader core gives {loader:.4g} images/s: given.")
    status.update("counting memory")
    dtype = getattr(torch, DTYPES[args.precision])
    return Figures(speed, loader, *memory_of(args.model, args.image_size, dtype)), how


def _assumed(args: argparse.Namespace, how: list[str]) -> list[str]:
    reduced = (
        "The all-reduce is hidden behind the backward."
        if args.bandwidth is None
        else f"A device sends {args.bandwidth:g} GB/s; the all-reduce runs beside the computing, and a step takes as "
        "long as the slower of both."
    )
    return [
        *how,
        "Every device is as fast as one alone, and loaders keep up.",
        reduced + " Gradients are float32, reduced in a ring.",
        "Without validation, checkpoints, averages of weights and MESA; 1000 classes.",
        "Memory from below: weights, gradients, AdamW, averages and what the backward finds saved.",
    ]


def _show(args: argparse.Namespace, asked: "Asked", figures: "Figures", found: "Forecast", assumed: list[str]) -> None:
    from rich.console import Console

    from vssm_cli.lines import print_fact, print_note

    console = Console()
    reduce = "" if found.reduce_seconds is None else f", {_seconds(found.reduce_seconds)}"
    hidden = f"; it can be hidden from {_giga(found.hidden_bandwidth)}/s on" if asked.gpus > 1 else ""
    total = asked.gpus * asked.batch_size
    rows = {
        "training": f"{args.model}, {asked.epochs} epochs of {found.steps_per_epoch} steps of {asked.gpus} x "
        f"{asked.batch_size} = {total} images of {args.image_size}, {args.precision}",
        "step": f"{_seconds(found.step_seconds)} ({_seconds(found.compute_seconds)} of computing), "
        f"{_number(found.images_per_second)} images/s in all",
        "time": f"{_number(found.hours)} hours, {_number(asked.gpus * found.hours)} device hours",
        "memory": f"at least {found.memory_bytes / 2**30:.3g} GiB per device" if found.memory_bytes else "not counted",
        "all-reduce": f"{_giga(figures.gradient_bytes)} of gradients, each device sends {_giga(found.sent_bytes)} per "
        f"step{reduce}{hidden}",
        "input": f"{_number(found.input_images_per_second)} images/s per device; a loader core gives "
        f"{_number(figures.loader_images_per_second)}: {found.loader_cores} cores per device, "
        f"{asked.gpus * found.loader_cores} in all",
    }
    for name, value in rows.items():
        print_fact(console, name, value, 12)
    for sentence in assumed:
        print_note(console, sentence)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _giga(count: float) -> str:
    return f"{_number(count / 1e9)} GB"


def _seconds(value: float) -> str:
    return f"{_number(value)} s" if value >= 1 else f"{_number(1e3 * value)} ms"
