"""Reading a large json element by element: memory does not grow with the file."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vssm.data.files import printable_name

__all__ = ["CHUNK", "BadJson", "Element", "Unparsed", "elements", "read_element"]

CHUNK = 1 << 24
# No element of an array is larger; one that cannot be parsed within so many bytes is wrong and not merely long.
LONGEST = 1 << 28
_SPACE = " \t\n\r"


class BadJson(ValueError):
    """A json file that cannot be read: file, line and reason."""


class Unparsed(str):
    """The text of a json array that was passed over."""


class Element(NamedTuple):
    """An element of an array of the file: which array, the position in it, its value, and its bytes in the file.

    What is not in an array has `number` -1.
    """

    section: str
    number: int
    value: Any
    start: int
    end: int


def elements(path: Path, sections: Iterable[str], unparsed: str = "", chunk: int = CHUNK) -> Iterator[Element]:
    """The elements of the named top-level arrays of a json object, in the order of the file; all else is passed over.

    A named section that is no array comes as one element with the number -1. Where elements are objects with a member
    `unparsed` that is an array, this may come as Unparsed, its text: most of the time goes into arrays of numbers.

    Raises BadJson with line and reason for what is not json or ends too early, and OSError.
    """
    with path.open("rb") as file:
        yield from _Reader(path, file, chunk, unparsed).elements(frozenset(sections))


def read_element(file: BinaryIO, start: int, end: int) -> Any:
    """What `elements` found at these bytes."""
    file.seek(start)
    return json.loads(file.read(end - start))


class _Reader:
    """The text of a file around one position. It is decoded as Latin-1, so that a character is a byte; an element with
    other bytes than ASCII is decoded once more, as UTF-8."""

    def __init__(self, path: Path, file: BinaryIO, chunk: int, unparsed: str):
        self.path, self.file, self.chunk, self.unparsed = path, file, chunk, unparsed
        self.key = f'"{unparsed}":' if unparsed else ""
        self.text, self.at, self.offset = "", 0, 0  # `offset`: of the text in the file; `at`: within the text
        self.ended = self.plain = False
        self.scan = json.JSONDecoder().raw_decode
        self.section, self.number = "", -1  # where the position is, for errors

    def elements(self, sections: frozenset[str]) -> Iterator[Element]:
        if self.peek() == "\xef":  # UTF-8's byte order mark
            self.at += 3
        self.expect("{", "an object {...}")
        if self.peek() != "}":
            while True:
                section, _, _ = self.value()
                if not isinstance(section, str):
                    raise self.error(f"a name was expected, got {section!r:.40}")
                self.expect(":", f"a colon after {section!r:.40}")
                self.section = section
                if section in sections and self.peek() == "[":
                    yield from self.array(section)
                else:
                    value, start, end = self.value()
                    if section in sections:
                        yield Element(section, -1, value, start, end)
                self.section, self.number = "", -1
                if self.peek() != ",":
                    break
                self.at += 1
        self.expect("}", "a comma or }")
        if self.peek():
            raise self.error("text after the end of the object")

    def array(self, section: str) -> Iterator[Element]:
        self.expect("[", "[")
        if self.peek() != "]":
            number = 0
            while True:
                self.number = number
                found = self.quick_value() if self.key else None
                value, start, end = found or self.value()
                yield Element(section, number, value, start, end)
                number += 1
                if self.text.startswith(", {", self.at):
                    self.at += 2
                    continue
                if self.peek() != ",":
                    break
                self.at += 1
        self.expect("]", "a comma or ]")

    def quick_value(self) -> tuple[Any, int, int] | None:
        """The next object with its member `unparsed` as Unparsed; None where that takes more than a few searches.

        The array ends before the next quote or brace, as one of numbers holds neither.
        """
        text, start = self.text, self.at
        while text.startswith((" ", "\t", "\n", "\r"), start):
            start += 1
        brace = text.find("}", start)
        key = text.find(self.key, start, brace)
        begin = text.find("[", key, brace)
        if brace < 0 or key < 0 or begin < 0 or text[key + len(self.key) : begin].strip():
            return None
        head, quote = text[start:key], text.find('"', begin, brace)
        end = text.rfind("]", begin, brace if quote < 0 else quote) + 1
        # Not where the key may be that of an object within, or part of a text.
        if not end or not head.startswith("{") or head.count("{") != 1 or "\\" in head:
            return None
        short = f"{head}{self.key}0{text[end : brace + 1]}"
        try:
            value, length = self.scan(short)
        except json.JSONDecodeError:
            return None
        if length != len(short) or not short.isascii() or value[self.unparsed] != 0:
            return None
        value[self.unparsed] = Unparsed(text[begin:end])
        self.at = brace + 1
        return value, self.offset + start, self.offset + brace + 1

    def value(self) -> tuple[Any, int, int]:
        """The next value and its bytes."""
        self.peek()
        while True:
            try:
                value, end = self.scan(self.text, self.at)
                # A number may go on in the next chunk.
                if end < len(self.text) or self.ended:
                    break
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.at > LONGEST:
                    at_end = self.ended and not self.text[error.pos :].strip(_SPACE)
                    cut = at_end or error.msg.startswith("Unterminated")
                    reason = "the file ends here, it is truncated" if cut else error.msg
                    raise self.error(reason, len(self.text) if cut else error.pos) from None
            except RecursionError:
                raise self.error("nested too deeply") from None
            self.more()
        start, self.at = self.at, end
        if not self.plain and not self.text[start:end].isascii():
            value = self.as_utf8(start, end)
        return value, self.offset + start, self.offset + end

    def as_utf8(self, start: int, end: int) -> Any:
        try:
            return json.loads(self.text[start:end].encode("latin-1"))
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason})", start + error.start) from None

    def peek(self) -> str:
        """The next character that is no space; '' at the end of the file."""
        while True:
            while self.at < len(self.text):
                character = self.text[self.at]
                if character not in _SPACE:
                    return character
                self.at += 1
            if self.ended:
                return ""
            self.more()

    def expect(self, character: str, words: str) -> None:
        found = self.peek()
        if found != character:
            if not found:
                empty = self.offset + len(self.text) == 0
                raise self.error("the file is empty" if empty else "the file ends here, it is truncated")
            raise self.error(f"{words} was expected, got {found!r}")
        self.at += 1

    def more(self) -> None:
        """Reads on; at least as much as is there already, so that a long element is not scanned over and over."""
        left = self.text[self.at :]
        read = self.file.read(max(self.chunk, len(left)))
        self.offset += self.at
        self.text, self.at = left + read.decode("latin-1"), 0
        self.plain = self.text.isascii()
        self.ended = not read

    def error(self, reason: str, position: int | None = None) -> BadJson:
        position = self.offset + (self.at if position is None else position)
        self.file.seek(0)
        line, column, left = 1, 1, position
        while left and (block := self.file.read(min(left, self.chunk))):
            left -= len(block)
            line += block.count(b"\n")
            last = block.rfind(b"\n")
            column = column + len(block) if last < 0 else len(block) - last
        where = f"{self.section!r:.40}" if self.section else "the file"
        where = where if self.number < 0 else f"element {self.number} of {where}"
        return BadJson(f"{printable_name(self.path)}, line {line}, column {column}, in {where}: {reason}")
