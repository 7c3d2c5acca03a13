"""The confusion matrix as a table, which can be read aloud, searched, copied, and scrolled with its names in sight."""

import math
from collections.abc import Sequence

from vssm._markup import Markup, name_of, tag

WITH_NUMBERS = 20


def confusion_matrix(counts: Sequence[Sequence[int]], totals: Sequence[int], names: Sequence[str]) -> Markup:
    """True classes down, classes read across; every cell tells its names and count when pointed at.

    Colour is the share of `totals`, the images of the true class: hits in the first colour, mistakes in the second.
    Up to 20 classes show their numbers; more get smaller cells.
    """
    number = len(names)
    kind = "numbers" if number <= WITH_NUMBERS else "small" if number <= 2 * WITH_NUMBERS else "tiny"
    corner = tag("td", "true \N{DOWNWARDS ARROW} predicted \N{RIGHTWARDS ARROW}", class_="quiet")
    head = tag("tr", corner, *(tag("th", name_of(name), scope="col", title=name) for name in names))
    rows = []
    for i, (row, total) in enumerate(zip(counts, totals, strict=True)):
        cells = [_cell(n, total, i == j, names[i], names[j], kind == "numbers") for j, n in enumerate(row)]
        rows.append(tag("tr", tag("th", name_of(names[i]), scope="row", title=names[i]), *cells))
    written = tag("table", tag("thead", head), tag("tbody", *rows), class_=f"matrix {kind}")
    label = f"Confusion matrix of {number} classes"
    return tag("div", written, class_="scroll", tabindex=0, role="region", aria_label=label)


def _cell(count: int, total: int, hit: bool, truth: str, read: str, number: bool) -> Markup:
    if not count:
        return tag("td")
    share = count / total
    return tag(
        "td",
        count if number else "",
        title=f"{truth}, predicted {read}: {count} of {total} ({share:.1%})",
        class_=("hit" if hit else "miss") + (" strong" if share > 0.75 else ""),
        # The root makes one mistake among thousands seen.
        style=f"--share:{15 + 85 * math.sqrt(share):.0f}%",
    )
