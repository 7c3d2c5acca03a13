"""Figures of what is inside: what is drawn where, by which scale."""

import numpy as np
import pytest
from PIL import Image

from vssm.figures.inside import FIELD, Curve, Panel, Row, draw_panels

PHOTO = np.full((8, 8, 3), 200, np.uint8)


def rows():
    values = np.linspace(0, 1, 16).reshape(4, 4)
    curve = Curve([("along", np.array([1, 0.1, 0]), "#123456", "--")], "pixels")
    first = [Panel(PHOTO, "photo", star=(3.5, 2.5)), Panel(values, "map", "a / b %", power=0.5), Panel(curve, "decay")]
    second = [Panel(values, "matrix", arrow=2), Panel(None, under="nothing here"), Panel(PHOTO[..., :1], "grey")]
    return [Row("vmamba_tiny", first, "random weights (seed 0), block 2.1"), Row("a$b_tiny", second)]


def test_panels(tmp_path, figures):
    draw_panels(rows(), tmp_path / "a.png", "Heading", "What is shown. " * 12, "weight", FIELD)
    (figure,) = figures
    *panels, bar = figure.axes
    photo, values, decay, matrix, nothing, grey = panels
    assert [axes.get_title(loc="left") for axes in panels] == ["photo", "map", "decay", "matrix", "", "grey"]
    (shown,) = values.images
    np.testing.assert_allclose(shown.get_array(), np.sqrt(np.linspace(0, 1, 16)).reshape(4, 4))
    for axes in (values, matrix):  # one scale for all, that of the bar
        assert axes.images[0].get_clim() == (0, 1) and axes.images[0].get_cmap().name == FIELD
    assert bar.images[0].get_cmap().name == FIELD and bar.get_ylabel() == "weight"
    (star,) = photo.lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2.5, 3.5)
    assert values.get_xlabel() == "a / b %"
    (line,) = decay.lines
    assert line.get_label() == "along" and line.get_linestyle() == "--" and decay.get_yscale() == "log"
    (arrow,) = matrix.texts
    assert arrow.xy == (0, 2)
    assert nothing.texts[0].get_text() == "nothing here" and not nothing.images
    assert grey.images[0].get_array().shape == (8, 8)
    texts = [text.get_text().replace("\n", "") for text in figure.texts]
    assert texts[0] == "Heading" and "vmamba_tiny" in texts and "a$b_tiny" in texts
    inside = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= inside.width and box.y0 >= 0, text.get_text()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == pytest.approx(tuple(130 * figure.get_size_inches()), abs=1)


def test_labels_do_not_reach_into_the_panels(tmp_path, figures):
    draw_panels(
        [Row("spatial_mamba_tiny", [Panel(PHOTO)], "random weights (seed 0), block 2.1, 14x14, query 7,7")],
        tmp_path / "a.png",
        "Heading",
        "Caption",
        "weight",
    )
    (figure,) = figures
    photo = figure.axes[0].get_window_extent()
    _, label, note, _ = figure.texts
    assert label.get_window_extent().x1 < photo.x0 and note.get_window_extent().x1 < photo.x0


@pytest.mark.parametrize(("suffix", "start"), [(".pdf", b"%PDF"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_vectors(tmp_path, suffix, start):
    path = tmp_path / f"a{suffix}"
    draw_panels(rows(), path, "Heading", "Caption", "weight")
    content = path.read_bytes()
    assert content.startswith(start)
    if suffix == ".svg":
        assert b"Heading" in content, "text stays text"
