import re

import pytest

from vssm._markup import Markup, escape, tag
from vssm.figures.charts import LEFT, Series, line_chart, nice_ticks


def test_markup_escapes_text_and_attributes():
    assert tag("b", "<i>&\"'", title='a"b<') == '<b title="a&quot;b&lt;">&lt;i&gt;&amp;&quot;&#x27;</b>'
    assert (
        tag("b", Markup("<i></i>"), class_="x", fill_opacity=1, id=None) == '<b class="x" fill-opacity="1"><i></i></b>'
    )
    assert escape("a\0b\udc80") == "a\N{REPLACEMENT CHARACTER}b?"


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 2.9, [0, 1, 2, 3]),
        (5, 5, [2, 3, 4, 5, 6, 7, 8]),
        (2.4795, 2.47951, [1, 1.5, 2, 2.5, 3, 3.5, 4]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, ticks):
    assert nice_ticks(low, high) == ticks


def paths(chart):
    return re.findall(r'<path d="M([^"]*)" class="line', chart)


def test_line_ends_at_nan_and_goes_on_after_it():
    nan = float("nan")
    chart = line_chart("Loss", [Series("training", [(0, 2.0), (1, 1.0), (2, nan), (3, 1.0), (4, 0.0)])], "step")
    first, second = paths(chart)
    assert first.split("L")[0] == f"{LEFT:.1f} 10.0"
    assert second.split("L")[-1] == "374.0 210.0"
    assert "nan" not in chart
    assert line_chart("Loss", [Series("training", [(0, nan)])], "step") == ""


def test_long_series_are_thinned_to_their_means():
    chart = line_chart("Loss", [Series("training", [(x, x % 2) for x in range(6000)])], "step")
    (path,) = paths(chart)
    heights = {place.split()[1] for place in path.split("L")}
    assert len(path.split("L")) == 300
    assert len(heights) == 1  # the mean of zeros and ones
