"""How a table of the papers is printed: on the terminal, as Markdown, CSV or JSON."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from vssm.analysis.tables.records import Record
from vssm.analysis.tables.table import Table

Cell = Callable[[Record], str]


def show(table: Table, found: Sequence[Record], form: str | None, relative_to: str | None, how: str | None) -> None:
    """Print records of a table; `how` says in words how its speeds were measured."""
    if form == "json":
        document = {"table": table.name, "title": table.title, "source": table.source, "measured": how}
        print(json.dumps(document | {"rows": list(found), "notes": _used_notes(table, found)}, indent=1))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**record, "notes": "; ".join(record["notes"])} for record in found)
    else:
        columns = _columns(table, found, relative_to)
        footnotes = [f"[{i}] {text}" for i, text in enumerate(_used_notes(table, found).values(), 1)]
        legend = _legend(table, how)
        if form == "markdown":
            _print_markdown(table, columns, found, [*legend, *footnotes])
        else:
            _print_rich(table, columns, found, [*legend, *footnotes])


def _legend(table: Table, how: str | None) -> list[str]:
    legend = [f"{table.source}. Figures marked 'paper' are the paper's own; accuracy was not measured here."]
    return legend if how is None else [*legend, f"Measured here: {how}. The paper's speeds are of its own GPU."]


def _used_notes(table: Table, found: Sequence[Record]) -> dict[str, str]:
    used = {key for record in found for key in record["notes"]}
    return {key: text for key, text in table.notes.items() if key in used}


def _columns(table: Table, found: Sequence[Record], relative_to: str | None) -> dict[str, Cell]:
    """Heading -> what stands in a row. Columns without information in this table are left out."""
    numbers = {key: f" [{i}]" for i, key in enumerate(_used_notes(table, found), 1)}
    columns: dict[str, Cell] = {"row": lambda r: r["row"] + "".join(numbers[key] for key in r["notes"])}
    if any(r["built_as"] not in (r["row"], None) for r in found):
        columns["built as"] = lambda r: r["built_as"] or "-"
    if any(r["change"] for r in found):
        columns["change"] = lambda r: r["change"] or ""
    columns |= {
        "M params": lambda r: _number(r["params"], 1e6, 2),
        "paper": lambda r: r["params_paper"] or "-",
        "off, %": lambda r: _signed(r["params_deviation"]),
        "G macs": lambda r: _number(r["macs"], 1e9, 3),
        "paper ": lambda r: r["gmacs_paper"] or "-",
        "off, % ": lambda r: _signed(r["macs_deviation"]),
    }
    for key, heading in table.scores.items():
        columns[f"{heading} (paper)"] = lambda r, key=key: r[f"{key}_paper"] or "-"
    if "images_per_second" in found[0]:
        columns |= {
            "images/s": lambda r: _number(r["images_per_second"], 1, 2),
            f"x {relative_to}": lambda r: _number(r["ratio"], 1, 2),
            f"x {relative_to} (paper)": lambda r: _number(r["ratio_paper"], 1, 2),
            "peak MB": lambda r: _number(r["peak_mb"], 1, 0),
        }
    return columns


def _number(value: Any, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}".replace("-0.0", "+0.0")


LEFT = ("row", "built as", "change")


def _print_rich(table: Table, columns: dict[str, Cell], found: Sequence[Record], footnotes: Sequence[str]) -> None:
    shown = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for heading, cell in columns.items():
        wraps = heading in LEFT and heading != "row"
        texts = [heading.strip(), *(cell(record) for record in found)]
        shown.add_column(
            escape(heading.strip()),
            justify="left" if heading in LEFT else "right",
            style="dim" if "paper" in heading else None,
            no_wrap=not wraps,
            min_width=16 if wraps else max(map(len, texts)),
            overflow="fold",
        )
    for record in found:
        odd = record["as_printed"] is False
        shown.add_row(*(escape(cell(record)) for cell in columns.values()), style="yellow" if odd else None)
    console = Console()
    # Wider than the terminal rather than with figures cut off: half a number is another number.
    needed = console.measure(shown, options=console.options.update(max_width=10_000)).minimum
    Console(width=max(console.width, needed)).print(shown)
    for line in footnotes:
        console.print(line, style="dim", markup=False, highlight=False)


def _print_markdown(table: Table, columns: dict[str, Cell], found: Sequence[Record], footnotes: Sequence[str]) -> None:
    lines = [[heading.strip() for heading in columns], ["---" if h in LEFT else "---:" for h in columns]]
    lines += [[cell(record) for cell in columns.values()] for record in found]
    print(f"**{table.title}**\n")
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))
    print("".join(f"\n{line}\n" for line in footnotes), end="")
