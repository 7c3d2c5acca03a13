"""What the page asks, checked: JSON objects with known fields."""

import json
from dataclasses import dataclass
from typing import Any

from vssm.analysis.matrices import WEIGHTS
from vssm.lens.networks import Choice
from vssm.lens.refused import Refused

__all__ = ["Ask"]

_MISSING = object()


@dataclass(frozen=True)
class Ask:
    """The body of a request. Every method gives one field, or refuses it with what was expected."""

    fields: dict[str, Any]

    @classmethod
    def of(cls, body: bytes) -> "Ask":
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused("the request is not JSON") from None
        if not isinstance(fields, dict):
            raise Refused("the request is no JSON object")
        return cls(fields)

    @property
    def choice(self) -> Choice:
        checkpoint = self._take("checkpoint", str, "a name or null", None)
        return Choice(self.text("model"), checkpoint, self.number("size"))

    @property
    def image(self) -> str:
        return self.text("image")

    @property
    def block(self) -> str:
        return self.text("block")

    @property
    def weights(self) -> str:
        weights = self.text("weights")
        if weights not in WEIGHTS:
            raise Refused(f"unknown weights {weights!r}: choose one of {', '.join(WEIGHTS)}")
        return weights

    @property
    def query(self) -> tuple[int, int]:
        found = self.fields.get("query")
        if not isinstance(found, list) or len(found) != 2 or not all(type(x) is int for x in found):
            raise Refused("query must be [row, column], two whole numbers")
        return found[0], found[1]

    @property
    def has_query(self) -> bool:
        return self.fields.get("query") is not None

    def text(self, name: str) -> str:
        return self._take(name, str, "a text")

    def number(self, name: str) -> int | None:
        return self._take(name, int, "a whole number or null", None)

    def _take(self, name: str, kind: type, expected: str, otherwise: Any = _MISSING) -> Any:
        value = self.fields.get(name)
        if value is None and otherwise is not _MISSING:
            return otherwise
        if type(value) is not kind:
            raise Refused(f"{name} must be {expected}")
        return value
