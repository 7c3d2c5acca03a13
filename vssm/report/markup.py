"""Writing HTML and SVG so that nothing is left unescaped or unclosed."""

import html
import re

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


def table(headings: list[object], rows: list[list[object]], kind: str | None = None) -> Markup:
    """The first column names the row; the others are numbers, set flush right."""
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    body = (tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows)
    written = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", written, class_=f"scroll {kind}" if kind else "scroll", tabindex=0)
