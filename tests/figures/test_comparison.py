"""The picture of two models on the same images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vssm.figures.comparison import draw
from vssm.inference.compare import Pair, Tally
from vssm.inference.predict import Prediction


def pair(path, first, second):
    return Pair(*(Prediction(Path(path), ((name, p), ("other", 1 - p))) for name, p in (first, second)))


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_picture(tmp_path, count):
    """Its size follows the number of images; the images and the bars of both models are there, in their colours."""
    tally = Tally(24)
    for number in range(count):
        path = tmp_path / f"$odd_{number}^2 猫\n.png"
        Image.new("RGB", (40, 30), (0, 255, 0)).save(path)
        tally.add(pair(path, ("cat " * 30, 0.75), ("dog", 0.5)))
    draw(tally, ("runs/first" * 20, "second"), tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    columns, rows = min(count, 3), {1: 1, 2: 1, 5: 2, 30: 8}[count]
    assert pixels.shape[1] == pytest.approx(110 * (0.9 + 4.9 * columns + 0.3 * (columns - 1)), abs=2)
    assert pixels.shape[0] == pytest.approx(110 * (1.25 + 0.45 + 2.15 * rows), abs=2)

    def inches(colour):
        return (np.abs(pixels - colour).sum(-1) < 12).sum() / 110**2

    shown = min(count, 24)
    assert inches((0, 255, 0)) == pytest.approx(shown * 1.75 * 1.75 * 0.75, rel=0.03)
    # Bars of 2.97 inches: 0.75 and 0.25 of the first model; 0.5 and 0.5 of the second. Letters cover a part of them.
    for tint in ((0xCF, 0xE3, 0xEA), (0xF6, 0xDC, 0xC9)):
        assert 0.6 * shown < inches(tint) / (2.97 * 0.195) < 1.02 * shown


def test_an_image_that_has_gone_since(tmp_path):
    tally = Tally(3)
    tally.add(pair(tmp_path / "gone.png", ("cat", 0.5), ("dog", 0.5)))
    with pytest.raises(ValueError, match=r"gone\.png: No such file"):
        draw(tally, ("a", "b"), tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
