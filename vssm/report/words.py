"""Numbers as a reader wants them. A no-break space keeps a number and its unit on one line."""

import math

from vssm._markup import NBSP


def percent(share: float, digits: int = 2) -> str:
    return "-" if math.isnan(share) else f"{share * 100:.{digits}f}{NBSP}%"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s"
    minutes = round(seconds / 60)
    return f"{minutes}{NBSP}min" if minutes < 60 else f"{minutes // 60}{NBSP}h {minutes % 60}{NBSP}min"


def magnitude(number: float) -> str:
    """`0.57 M`, `4.90 G`: parameters and multiply-adds as papers write them."""
    power, letter = (1e9, "G") if number >= 1e9 else (1e6, "M")
    return f"{number / power:.2f}{NBSP}{letter}"


def amount(number: int, of: str, many: str | None = None) -> str:
    """`1 image`, `3 images`, `2 classes` (with `many`)."""
    return f"{number} {of if number == 1 else many or of + 's'}"
