from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from vssm.data.preprocess import Preprocess
from vssm.inference.compare import Pair, Tally, class_difference, compare
from vssm.inference.predict import Prediction
from vssm.inference.predictor import Predictor


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


def test_different_classes_are_reported():
    assert class_difference(predictor(0.5), predictor(0.5, classes=("bright", "dark"))) is None
    said = class_difference(predictor(0.5), predictor(0.5, classes=("bright", "dim")))
    assert "1 have the same name in both, 1 are only in the first, 1 only in the second" in said
