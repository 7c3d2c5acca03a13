"""vssm demo: small models learn to read digits, to find shapes, to segment them; in minutes on two cores."""

from pathlib import Path

from vssm_cli.parsing import Parser, Stop, parse
from vssm_cli.shapes_demo import KINDS
from vssm_cli.shapes_demo import run as run_shapes

DESCRIPTION = """\
digits: trains vmamba_nano and spatial_mamba_nano on 1437 handwritten digits, tests them on 360 others, prints a table
and writes a figure with the learning curves and the misclassified digits. detect, segment: writes 400 images of shapes
(each class in a color of its own), trains UPerNet with small heads on vmamba_nano, for detect then Mask R-CNN on its
backbone, evaluates on 100 other images and draws what was found. Fails (exit code 1) below 98 % top-1, 60 % box AP50 or
60 % mIoU."""

MODELS = ("vmamba_nano", "spatial_mamba_nano")
RECIPE = "digits"
TARGET = 0.98


def main(argv: list[str]) -> int:
    parser = Parser("demo", DESCRIPTION)
    parser.add_argument("what", nargs="?", choices=("digits", *KINDS), default="digits", help="default digits")
    parser.add_argument("--out", metavar="DIR", help="folder to create; runs/demo when not given, or the next free one")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default 0)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training images; the recipe's else")
    args = parse(parser, argv)
    return 0 if args is None else _demo(args.what, args.out, args.seed, args.epochs)


def _demo(what: str, out: str | None, seed: int, epochs: int | None) -> int:
    from rich.console import Console

    from vssm._yaml import read_yaml
    from vssm.inference.run_dir import free_path
    from vssm.settings import Settings
    from vssm_cli.settings import recipes

    name = "demo" if what == "digits" else f"demo-{what}"
    folder = free_path(f"runs/{name}") if out is None else Path(out)
    if out is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is already in use; choose another --out, or remove it")
    if what in KINDS:
        return run_shapes(what, folder, seed, epochs)
    console = Console()
    with console.status("loading torch and Lightning"):
        from vssm.figures.demo import draw
        from vssm.report.write import write_report
        from vssm.train.demo import train_digits
        from vssm.train.progress import LiveProgress
        from vssm_cli.lines import print_line
        from vssm_cli.show import announce, device_of, kernels

    results = []
    for name in MODELS:
        settings = Settings.from_dict(read_yaml(recipes()[RECIPE]))
        settings.model.name, settings.seed, settings.out = name, seed, str(folder / name)
        settings.trainer.devices = 1
        if epochs is not None:
            settings.trainer.max_epochs = epochs
        results.append(
            train_digits(settings, lambda experiment: announce(console, experiment), [LiveProgress(console, name)])
        )
        console.print()
    console.print(_table(results))
    for result in results:
        ran = kernels(result.operators, device_of(settings.trainer.accelerator))
        print_line(console, f"{result.model} ran {ran}")
    picture = folder / "demo.png"
    draw(results, TARGET, picture)
    print_line(console, f"learning curves and misclassified digits: {picture}")
    report = folder / "report.html"
    with console.status("writing the report"):
        write_report([result.run for result in results], report, device_of(settings.trainer.accelerator))
    print_line(console, f"report that compares the models: {report}")
    below = [result for result in results if result.accuracy < TARGET]
    if below:
        names = ", ".join(f"{result.model} {result.accuracy:.2%}" for result in below)
        raise Stop(f"the goal of {TARGET:.0%} was missed: {names}")
    return 0


def _table(results):
    from rich.table import Table

    table = Table()
    table.add_column("model", no_wrap=True)
    for heading in ("accuracy", "wrong", "params", "train img/s", "test img/s"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result.model,
            f"{result.accuracy:.2%}",
            str(len(result.wrong)),
            f"{result.parameters / 1e6:.2f} M",
            f"{result.train_images_per_second:.0f}",
            f"{result.test_images_per_second:.0f}",
        )
    return table
