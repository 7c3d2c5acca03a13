"""Writing HTML and SVG so that nothing is left unescaped or unclosed."""

import html
import re
from collections.abc import Iterable, Sequence

NBSP = "\N{NO-BREAK SPACE}"  # keeps a number and its unit on one line
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Text for an element or a quoted attribute. Control characters and lone surrogates, which HTML cannot hold, show
    as a replacement sign."""
    if isinstance(value, Markup):
        return value
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return Markup(html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """<name attributes>children</name>. A trailing underscore of an attribute is dropped, inner ones become hyphens;
    an attribute of None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def void(name: str, /, **attributes: object) -> Markup:
    """An element without content: `img`, `meta`."""
    return Markup(tag(name, **attributes).removesuffix(f"</{name}>"))


def join(parts: object) -> Markup:
    return Markup("".join(escape(part) for part in parts))  # type: ignore[attr-defined]


def name_of(name: object) -> Markup:
    """A name that others chose, which may run from right to left, kept apart from the text around it."""
    return tag("bdi", name)


def file_name(path: object) -> Markup:
    """A path runs from left to right, whatever the script of its parts."""
    return tag("bdi", path, dir="ltr")


def table(label: str, headings: Sequence[object], rows: Iterable[Sequence[object]], texts: int = 1) -> Markup:
    """The first `texts` columns are text, the first of them names the row; the others are numbers, set flush right.

    It scrolls sideways by itself where the page is too narrow; `label` names it for those who cannot see it.
    """
    kinds = ["text" if i < texts else None for i in range(len(headings))]
    head = tag("tr", *(tag("th", h, scope="col", class_=kind) for h, kind in zip(headings, kinds, strict=True)))
    body = []
    for row in rows:
        first, *others = zip(row, kinds, strict=True)
        cells = (tag("td", cell, class_=kind) for cell, kind in others)
        body.append(tag("tr", tag("th", first[0], scope="row", class_=first[1]), *cells))
    written = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", written, class_="scroll", tabindex=0, role="region", aria_label=label)
