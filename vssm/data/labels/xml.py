"""Small xml files from strangers: no document type, no entities, bounded size and depth."""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from vssm.data.files import printable_name
from vssm.data.labels.annotated import MAX_TEXT

__all__ = ["read_xml"]

MAX_DEPTH = 32


class _Builder(ElementTree.TreeBuilder):
    depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("has a document type (<!DOCTYPE ...>), which is refused: entities in it can fill the memory")

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:  # type: ignore[override]
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)


def read_xml(path: Path) -> Element:
    """The root of an xml file. Raises OSError; ValueError with file, line and reason."""
    if path.stat().st_size > MAX_TEXT:
        raise ValueError(f"{printable_name(path)}: more than {MAX_TEXT} bytes; that is no annotation of an image")
    try:
        parser = ElementTree.XMLParser(target=_Builder())
        parser.feed(path.read_bytes())
        return parser.close()
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = str(error).partition(":")[0]
        raise ValueError(f"{printable_name(path)}, line {line}, column {column}: {reason}") from None
    except ValueError as error:
        raise ValueError(f"{printable_name(path)} {error}") from None
