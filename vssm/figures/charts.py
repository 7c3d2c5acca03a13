"""Charts as inline SVG, coloured by the page's style sheet so that they follow light and dark mode."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from vssm._markup import NBSP, Markup, join, name_of, tag

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 26, 10, 40
COLORS = 6
MOST_POINTS = 300


Points = Sequence[tuple[float, float]]


class Bin(Protocol):
    """One bin of a calibration curve: mean confidence, share that was right, number of images."""

    @property
    def confidence(self) -> float: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def count(self) -> int: ...


@dataclass(frozen=True)
class Series:
    """One line: its name in the legend, its points, and its number among the page's colours."""

    label: str
    points: Points
    color: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Axes:
    """From values to positions in the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def at(self, x: float, y: float) -> tuple[float, float]:
        low, high = self.y
        if self.log:
            low, high, y = math.log10(low), math.log10(high), math.log10(y)
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def line_chart(title: str, series: Sequence[Series], x_label: str, percent: bool = False, zero: bool = False) -> Markup:
    """A figure with its legend; nothing at all when no series has a finite point.

    Gaps are left where a value is NaN or infinite. `zero` starts the y axis at 0; positive values that span more than
    a factor of 100 get a logarithmic axis.
    """
    finite = [(x, y) for one in series for x, y in one.points if math.isfinite(y)]
    if not finite:
        return Markup()
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    log = not percent and not zero and min(ys) > 0 and max(ys) / min(ys) > 100
    y_ticks = _log_ticks(min(ys), max(ys)) if log else nice_ticks(0.0 if zero else min(ys), max(ys))
    x_ticks = nice_ticks(min(xs), max(xs))
    # The x axis ends where the data does; the y axis at round values.
    axes = Axes(_span(min(xs), max(xs)), (y_ticks[0], y_ticks[-1]), log)
    shown = [tick for tick in x_ticks if axes.x[0] <= tick <= axes.x[1]]
    grid = _grid(axes, shown, y_ticks, percent, x_label)
    lines = join(_line(one, axes) for one in series)
    legend = tag("ul", *(_legend(one, percent) for one in series if one.points), class_="legend")
    sentence = "; ".join(_in_words(one, percent) for one in series if one.points)
    drawing = _svg(f"{title} by {x_label}: {sentence}", grid, lines)
    return tag("figure", tag("figcaption", title), drawing, legend)


def calibration_chart(bins: Sequence[Bin], ece: float) -> Markup:
    """Accuracy over confidence with the line of a perfectly calibrated model; dots grow with the images in a bin."""
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    grid = _grid(axes, ticks, ticks, True, "confidence", x_percent=True)
    ideal = _path([axes.at(0, 0), axes.at(1, 1)], class_="ideal")
    most = max(one.count for one in bins)
    places = [axes.at(one.confidence, one.accuracy) for one in bins]
    dots = join(
        tag(
            "circle",
            tag("title", f"{one.count} images: confidence {one.confidence:.1%}, accuracy {one.accuracy:.1%}"),
            cx=f"{x:.1f}",
            cy=f"{y:.1f}",
            r=f"{2.5 + 5 * math.sqrt(one.count / most):.1f}",
            class_="dot c0",
        )
        for one, (x, y) in zip(bins, places, strict=True)
    )
    drawing = _svg(f"Calibration, expected error {ece:.2%}", grid, ideal, _path(places, class_="line c0"), dots)
    legend = tag(
        "ul",
        tag("li", "accuracy; dots grow with the number of images", class_="c0"),
        tag("li", "perfectly calibrated", class_="ideal"),
        class_="legend",
    )
    return tag("figure", tag("figcaption", "Accuracy by confidence"), drawing, legend)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round, evenly spaced values that enclose low..high."""
    low, high = _span(low, high)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def _span(low: float, high: float) -> tuple[float, float]:
    """The same interval, widened when it is a point, or so narrow that a flat line would look like a slope."""
    if high - low > 1e-3 * max(abs(low), abs(high)):
        return low, high
    half = abs(low) / 2 or 0.5
    return low - half, low + half


def _grid(
    axes: Axes, x_ticks: list[float], y_ticks: list[float], percent: bool, x_label: str, x_percent: bool = False
) -> Markup:
    parts = []
    for tick in y_ticks:
        x, y = axes.at(axes.x[0], tick)
        parts.append(_path([(x, y), (WIDTH - RIGHT, y)], class_="grid"))
        parts.append(tag("text", _written(tick, percent), x=f"{x - 6:g}", y=f"{y + 4:.1f}", class_="end"))
    for tick in x_ticks:
        x, y = axes.at(tick, y_ticks[0])
        parts.append(tag("text", _written(tick, x_percent), x=f"{x:.1f}", y=f"{y + 17:.1f}", class_="mid"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", x_label, x=f"{middle:g}", y=HEIGHT - 4, class_="mid quiet"))
    return join(parts)


def _written(value: float, percent: bool) -> str:
    if percent:
        return f"{value * 100:.4g}{NBSP}%"
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.5g}"


def _line(one: Series, axes: Axes) -> Markup:
    kind = f"line c{one.color % COLORS}"
    kind += " dashed" if one.color >= COLORS else ""
    kind += " faint" if one.faint else ""
    parts = []
    for good, run in groupby(_thinned(one.points), key=lambda point: math.isfinite(point[1])):
        if not good:
            continue
        places = [axes.at(x, y) for x, y in run]
        if len(places) == 1:
            x, y = places[0]
            parts.append(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=f"dot c{one.color % COLORS}"))
        else:
            parts.append(_path(places, class_=kind))
    return join(parts)


def _thinned(points: Points) -> Points:
    """At most about MOST_POINTS points: means of equal groups, each at the group's last x. NaN makes its group NaN."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _in_words(one: Series, percent: bool) -> str:
    """What the line shows, for those who cannot see it."""
    finite = [float(f"{y:.4g}") for _, y in one.points if math.isfinite(y)]
    if not finite:
        return f"{one.label} has no finite value"
    first, low, high, last = (_written(y, percent) for y in (finite[0], min(finite), max(finite), finite[-1]))
    return f"{one.label} from {first} to {last}, lowest {low}, highest {high}"


def _legend(one: Series, percent: bool) -> Markup:
    finite = [y for _, y in one.points if math.isfinite(y)]
    last = f"last {_written(float(f'{finite[-1]:.4g}'), percent)}" if finite else "no finite value"
    kind = f"c{one.color % COLORS}" + (" dashed" if one.color >= COLORS else "") + (" faint" if one.faint else "")
    return tag("li", name_of(one.label), " ", tag("span", last, class_="quiet"), class_=kind)


def _path(places: Sequence[tuple[float, float]], class_: str) -> Markup:
    return tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), class_=class_)


def _svg(label: str, *parts: Markup) -> Markup:
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, class_="plot")
