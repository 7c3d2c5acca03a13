"""One style for every picture, and files that are written whole."""

import matplotlib
import pytest
from PIL import Image

from vssm.figures.style import INK, QUIET, drawing, heading, title


def test_title_and_heading_are_placed_in_inches(tmp_path, figures):
    for size in ((4, 3), (8, 6)):
        with drawing(tmp_path / "a.png", size, dpi=50) as figure:
            title(figure, "Title", "under it", 0.5)
            heading(figure.subplots(), "Panel")
        head, under = figures.pop().texts
        assert (head.get_position()[0] * size[0], under.get_position()[0] * size[0]) == (0.5, 0.5)
        assert (1 - head.get_position()[1]) * size[1] == pytest.approx(0.45)
        assert (head.get_color(), under.get_color()) == (INK, QUIET)
        with Image.open(tmp_path / "a.png") as image:
            assert image.size == (50 * size[0], 50 * size[1])


def test_the_style_of_the_process_is_left_alone(tmp_path):
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    with drawing(tmp_path / "a.png", (2, 2), style={"font.size": 7}):
        assert matplotlib.rcParams["font.size"] == 7
    assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == (before, backend)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), drawing(path, (2, 2)):
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"old"
    with pytest.raises(OSError, match=r"none/a\.png"), drawing(tmp_path / "none" / "a.png", (2, 2)):
        pass


def test_a_palette_is_asked_for(tmp_path):
    for colors, mode in ((None, "RGBA"), (16, "P")):
        with drawing(tmp_path / "a.png", (2, 2), colors=colors) as figure:
            figure.subplots().plot([0, 1])
        with Image.open(tmp_path / "a.png") as image:
            assert image.mode == mode
            assert colors is None or len(image.getcolors()) <= colors
