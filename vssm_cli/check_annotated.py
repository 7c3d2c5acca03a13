"""vssm check of data for detection and segmentation."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from vssm.data.inspect_annotated import AnnotatedInspection, inspect_annotated, load_annotated
from vssm.data.layouts import Layout
from vssm_cli.check import CLASSES_SHOWN, SHOWN
from vssm_cli.lines import print_line


def check_annotated(layouts: Sequence[Layout], threads: int | None, as_json: bool) -> int:
    """Prints what each layout holds; the exit code, 1 when something has to be repaired."""
    found = [_inspect(layout, threads) for layout in layouts]
    if as_json:
        print(json.dumps({"layouts": [_plain(inspection) for inspection in found]}, ensure_ascii=False))
    else:
        console = Console()
        for inspection in found:
            _print(inspection, console)
    return 0 if all(inspection.clean for inspection in found) else 1


def _inspect(layout: Layout, threads: int | None) -> AnnotatedInspection:
    console = Console(stderr=True)
    with console.status(f"reading annotations ({layout.kind})"):
        loaded = load_annotated(layout)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("reading images", total=sum(map(len, loaded.datasets.values())))
        return inspect_annotated(layout, loaded, threads, lambda: progress.advance(bar))


def _plain(inspection: AnnotatedInspection) -> dict[str, object]:
    counted = "objects" if inspection.layout.kind == "coco" else "pixels"
    classes = inspection.classes
    return {
        "kind": inspection.layout.kind,
        "images": inspection.images,
        "kinds": dict(inspection.kinds),
        counted: {name: dict(zip(classes, counts, strict=True)) for name, counts in inspection.counts.items()},
        "problems": [
            {
                "kind": problem.kind,
                "split": split or None,
                "repair": problem.repair,
                "text": problem.text,
                "count": problem.count,
                "entries": list(problem.entries),
            }
            for split, problems in inspection.problems.items()
            for problem in problems
        ],
    }


def _print(inspection: AnnotatedInspection, console: Console) -> None:
    layout, classes = inspection.layout, inspection.classes
    what = "objects" if layout.kind == "coco" else "share of pixels"
    print_line(console, f"{layout.task} ({layout.kind}), {what}:", "bold")
    table = Table("class")
    for split in inspection.counts:
        table.add_column(split, justify="right")
    rows = list(zip(classes, zip(*inspection.counts.values(), strict=True), strict=True))
    totals = [sum(counts) for counts in inspection.counts.values()]
    if len(rows) > CLASSES_SHOWN:
        rows.sort(key=lambda row: row[1][0])
        rows = [(f"smallest: {rows[0][0]}", rows[0][1]), (f"largest: {rows[-1][0]}", rows[-1][1])]
    for name, counts in rows:
        table.add_row(Text(name), *(_count(layout, *pair) for pair in zip(counts, totals, strict=True)))
    table.add_section()
    if layout.kind == "coco":
        table.add_row(f"all {len(classes)} classes", *map(str, totals))
    table.add_row("images", *(str(count) for count in inspection.images.values()))
    console.print(table)
    print_line(console, f"kinds: {', '.join(f'{kind} {count}' for kind, count in inspection.kinds.most_common())}")
    for split, problems in inspection.problems.items():
        for problem in problems:
            print_line(console, f"{split}: {problem.text}" if split else problem.text, "red" if problem.repair else "")
            if len(problem.entries) > 1 and problem.repair:
                for entry in problem.entries[:SHOWN]:
                    print_line(console, f"  {entry}")
                if problem.count > SHOWN:
                    print_line(console, f"  and {problem.count - SHOWN} more")
    if inspection.clean:
        print_line(
            console, "nothing to repair: every image and its annotations can be read, and no image is in two splits"
        )


def _count(layout: Layout, count: int, total: int) -> str:
    return str(count) if layout.kind == "coco" else f"{count / max(total, 1):.2%}"
