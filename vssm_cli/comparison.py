"""vssm predict --compare: two models on the same images, as a table and as a picture."""

import argparse
import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

TABLE_ROWS = 20


def compare_models(args: argparse.Namespace, names: Iterator[str], stack: contextlib.ExitStack) -> int:
    """Prints agreement and the images that the models differ on, and writes the picture of `--out`."""
    from rich.console import Console

    from vssm_cli.lines import print_line, print_speed

    errors = Console(stderr=True)
    with errors.status("loading two models"):
        from vssm.data.files import printable_name
        from vssm.data.sources import find_files
        from vssm.figures.comparison import SHOWN, draw
        from vssm.inference.compare import Tally, class_difference, compare
        from vssm.inference.device import pick_device
        from vssm.inference.predictor import load_predictor
        from vssm.inference.subject import parse_source

        device = pick_device(args.device)
        sources = [parse_source(text) for text in args.compare]
        first, second = (load_predictor(source.weights, source.name) for source in sources)
        if args.image_size is not None:
            first, second = first.at_size(args.image_size), second.at_size(args.image_size)
        first, second = first.to(device), second.to(device)
    began = time.perf_counter()
    tally = Tally(max(SHOWN, TABLE_ROWS))
    pairs = compare(first, second, find_files(names), min(args.top_k, 3), args.batch_size, args.threads)
    stack.callback(pairs.close)
    status = stack.enter_context(errors.status("comparing"))
    for number, pair in enumerate(pairs, 1):
        tally.add(pair)
        if pair.error is not None:
            print_line(errors, f"{printable_name(pair.path)}: {pair.error}", style="red")
        status.update(f"{number} images")
    status.stop()
    if tally.images + tally.failed == 0:
        raise ValueError("no images to compare the models on")
    labels = _labels(args.compare)
    _print(tally, labels, class_difference(first, second))
    if args.out is not None and tally.images:
        draw(tally, labels, Path(args.out))
        print_line(errors, f"picture {args.out}")
    print_speed(errors, f"{tally.images} images by two models", tally.failed, tally.images + tally.failed, began)
    return 1 if tally.failed else 0


def _labels(sources: list[str]) -> tuple[str, str]:
    """What to call the two: the shortest tails of their paths that differ."""
    parts = [Path(text).parts for text in sources]
    for length in range(1, max(map(len, parts)) + 1):
        first, second = ("/".join(part[-length:]) for part in parts)
        if first != second:
            return first, second
    return f"{sources[0]} (first)", f"{sources[1]} (second)"


def _print(tally, labels: tuple[str, str], difference: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vssm.data.files import printable_name
    from vssm_cli.lines import print_note

    console = Console()
    if difference is not None:
        print_note(console, difference)
    differ = tally.images - tally.agreed
    console.print(f"{tally.agreed} of {tally.images} images named alike ({tally.agreement:.1%})", highlight=False)
    rows = list(itertools.takewhile(lambda pair: not pair.agree, tally.interesting()))[:TABLE_ROWS]
    if not rows:
        return
    table = Table()
    table.add_column("image", overflow="fold", min_width=12)
    for label in labels:
        table.add_column(Text(label), overflow="fold")
        table.add_column("prob.", justify="right", no_wrap=True)
    for pair in rows:
        cells: list[Text] = [Text(printable_name(pair.path))]
        for prediction in (pair.first, pair.second):
            name, probability = prediction.classes[0]
            cells += [Text(name, style="bold"), Text(f"{probability:.1%}")]
        table.add_row(*cells)
    console.print(table)
    if differ > len(rows):
        console.print(f"and {differ - len(rows)} more; the most confident are shown", highlight=False)
