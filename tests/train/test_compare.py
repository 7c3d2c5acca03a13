from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vssm.data.preprocess import Preprocess
from vssm.train.compare import Pair, Tally, class_difference, compare
from vssm.train.compare_figure import draw
from vssm.train.predict import Prediction
from vssm.train.predictor import Predictor


def pair(path, first, second):
    return Pair(*(Prediction(Path(path), ((name, p), ("other", 1 - p))) for name, p in (first, second)))


class Threshold(nn.Module):
    """Class 1 when the mean is above `level`, with certainty growing with the distance."""

    def __init__(self, level):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, images):
        distance = (images.mean((1, 2, 3)) - self.level) * 10
        return torch.stack([-distance, distance], 1)


def predictor(level, classes=("dark", "bright"), channels=1):
    preprocess = Preprocess((channels, 4, 4), (0.0,) * channels, (1.0,) * channels, "nearest", 1.0)
    return Predictor(f"threshold {level}", Threshold(level), preprocess, classes)


@pytest.fixture
def paths(tmp_path):
    made = []
    for number, value in enumerate((0, 60, 110, 150, 250)):
        made.append(tmp_path / f"{number}.png")
        Image.new("L", (6, 4), value).save(made[-1])
    (tmp_path / "bad.png").write_bytes(b"damaged")
    return [*made[:2], tmp_path / "bad.png", *made[2:]]


def test_each_model_reads_each_file_its_own_way(paths):
    found = list(compare(predictor(0.3), predictor(0.5, channels=3), paths, batch_size=2))
    assert [one.path for one in found] == paths
    assert [one.error is not None for one in found] == [False, False, True, False, False, False]
    named = [(one.first.classes[0][0], one.second.classes[0][0]) for one in found if one.error is None]
    assert named == [("dark",) * 2, ("dark",) * 2, ("bright", "dark"), ("bright",) * 2, ("bright",) * 2]


def test_names_are_compared_not_numbers(paths):
    swapped = predictor(0.5, classes=("bright", "dark"))
    assert not any(one.agree for one in compare(predictor(0.5), swapped, [paths[0], paths[-1]]))


def test_tally_counts_and_keeps_what_deserves_a_look():
    pairs = [
        pair("alike, equally sure", ("cat", 0.9), ("cat", 0.9)),
        pair("differ, one unsure", ("cat", 0.9), ("dog", 0.5)),
        pair("alike, not equally sure", ("cat", 0.9), ("cat", 0.6)),
        pair("differ, both sure", ("cat", 0.9), ("dog", 0.8)),
        Pair(Prediction(Path("bad"), error="damaged"), Prediction(Path("bad"), error="damaged")),
        pair("alike, also equally sure", ("cat", 0.7), ("cat", 0.7)),
    ]
    tally = Tally(kept=4)
    for one in pairs:
        tally.add(one)
    assert (tally.images, tally.agreed, tally.failed) == (5, 3, 1)
    assert tally.agreement == pytest.approx(0.6)
    assert [str(one.path) for one in tally.interesting()] == [
        "differ, both sure",
        "differ, one unsure",
        "alike, not equally sure",
        "alike, equally sure",
    ]
    assert Tally(3).agreement == 0


def test_different_classes_are_said():
    assert class_difference(predictor(0.5), predictor(0.5, classes=("bright", "dark"))) is None
    said = class_difference(predictor(0.5), predictor(0.5, classes=("bright", "dim")))
    assert "1 have the same name in both, 1 are only in the first, 1 only in the second" in said


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
