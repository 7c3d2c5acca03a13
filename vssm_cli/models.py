"""vssm models: names and sizes."""

from fnmatch import fnmatch
from typing import Any

from vssm_cli.parsing import Parser, nearest, parse

DESCRIPTION = "Lists our models with their parameters (for 1000 classes) and the image size they are made for."


def main(argv: list[str]) -> int:
    parser = Parser("models", DESCRIPTION)
    parser.add_argument("pattern", nargs="?", default="*", help="only names like this, for example 'vmamba_*'")
    args = parse(parser, argv)
    if args is None:
        return 0

    import timm
    import torch
    from rich.console import Console
    from rich.table import Table

    from vssm.models import list_models

    names = [name for name in list_models() if fnmatch(name, args.pattern)]
    if not names:
        raise ValueError(f"unknown model {args.pattern!r}{nearest(args.pattern, list_models())}")
    table = Table("model")
    for heading in ("parameters", "image size"):
        table.add_column(heading, justify="right")
    for name in names:
        with torch.device("meta"):  # shapes only
            model: Any = timm.create_model(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        _, height, width = model.pretrained_cfg["input_size"]
        table.add_row(name, f"{count / 1e6:.2f} M", f"{height}x{width}")
    Console().print(table)
    return 0
