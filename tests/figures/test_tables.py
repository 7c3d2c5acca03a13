"""The papers' figures of their tables: what is drawn where, with which numbers."""

import pytest
from PIL import Image

from vssm.analysis.tables import NAMES, load_table
from vssm.analysis.tables.count import Counted
from vssm.analysis.tables.records import records
from vssm.analysis.throughput import Measured
from vssm.figures.tables import draw

FIGURES = [name for name in NAMES if load_table(name).figure is not None]


def drawn(table, path, figures, measured=False):
    """The figure of a table whose models all have 5 G multiply-adds and, where measured, half of the first's speed."""
    counted = {row.name: None if row.model is None else Counted(31_000_000, 5_000_000_000) for row in table.rows}
    speeds = {row.name: Measured(10, 0.5, 3, 100, False) for row in table.rows if row.model} if measured else None
    reference = table.rows[0] if measured else None
    draw(table, records(table, counted, speeds, reference), reference, path)
    return figures.pop()


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("measured", [False, True])
def test_the_source_and_every_heading_are_there(name, measured, tmp_path, figures):
    figure = drawn(load_table(name), tmp_path / "figure.png", figures, measured)
    head, under = (text.get_text() for text in figure.texts)
    assert head and "arXiv 2401.10166" in under
    assert ("measured here" in under) == (measured and name != "imagenet")
    assert all(axes.get_title(loc="left") for axes in figure.axes)
    with Image.open(tmp_path / "figure.png") as image:
        width, height = figure.get_size_inches()
        assert image.size == pytest.approx((130 * width, 130 * height), abs=1)


def test_steps_of_acceleration(tmp_path, figures):
    table = load_table("acceleration")
    macs, speed, score = drawn(table, tmp_path / "figure.png", figures, measured=True).axes
    assert [bar.get_width() for bar in macs.patches] == [5.0] * len(table.rows)
    first = table.rows[0].throughput
    paper, ours = speed.containers
    assert [bar.get_width() for bar in paper] == pytest.approx([row.throughput / first for row in table.rows])
    assert not any(bar.get_fill() for bar in paper)
    assert [bar.get_width() for bar in ours] == [0.5 if row.model else 0 for row in table.rows]
    assert list(score.lines[0].get_xdata()) == [float(row.scores["top1"]) for row in table.rows]


def test_dense_prediction_against_classification(tmp_path, figures):
    table = load_table("imagenet")
    panels = drawn(table, tmp_path / "figure.png", figures).axes
    for axes, key in zip(panels, ("ap_box", "ap_mask", "miou"), strict=True):
        points = {tuple(point) for dots in axes.collections for point in dots.get_offsets()}
        rows = [row for row in table.rows if row.downstream]
        assert points == {(float(row.scores["top1"]), float(row.downstream[key])) for row in rows}
        assert all((dots.get_sizes() == 14 * 5).all() for dots in axes.collections)


def test_scan_patterns(tmp_path, figures):
    table = load_table("scan-patterns")
    speed, score = drawn(table, tmp_path / "figure.png", figures).axes
    first = table.rows[0].throughput
    heights = sorted(bar.get_height() for bar in speed.patches)
    assert heights == pytest.approx(sorted(row.throughput / first for row in table.rows))
    scores = sorted(value for line in score.lines for value in line.get_ydata())
    assert scores == sorted(float(row.scores["top1"]) for row in table.rows)


def test_what_no_package_has_is_drawn_as_printed(tmp_path, figures):
    table = load_table("resolution")
    macs, speed, top1, _ = drawn(table, tmp_path / "figure.png", figures).axes
    names = list(dict.fromkeys(row.name.partition("@")[0] for row in table.rows))
    for name, line, scores in zip(names, macs.lines, top1.lines, strict=True):
        rows = [row for row in table.rows if row.name.partition("@")[0] == name]
        printed = any(row.model is None for row in rows)
        assert line.get_label() == name
        expected = [float(row.gmacs or "nan") if printed else 5.0 for row in rows]
        assert list(line.get_ydata()) == pytest.approx(expected, nan_ok=True)
        assert line.get_markerfacecolor() == ("white" if printed else line.get_color())
        assert list(scores.get_ydata()) == [float(row.scores["top1"]) for row in rows]
    assert len(speed.lines) == len(names)


def test_a_table_without_a_figure(tmp_path):
    table = load_table("d-state")
    with pytest.raises(ValueError, match="the papers draw no figure of table d-state"):
        draw(table, [], None, tmp_path / "figure.png")
