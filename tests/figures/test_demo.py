"""The demo's picture: its numbers and its digits."""

from dataclasses import dataclass

import numpy as np
import pytest

from vssm.figures.demo import SHOWN, draw


@dataclass(frozen=True)
class Digit:
    truth: int
    read: int
    confidence: float
    image: np.ndarray


@dataclass(frozen=True)
class Result:
    model: str
    accuracy: float
    tested: int
    wrong: tuple[Digit, ...]
    unsure: tuple[Digit, ...]
    curves: list[dict[str, str]]


def result(model, wrong):
    """Two epochs of four steps; the loss is logged twice per epoch."""
    image = np.zeros((8, 8), np.float32)
    rows = []
    for step in (2, 4, 6, 8):
        epoch = -(-step // 4)
        rows.append(
            {"epoch": str(epoch), "step": str(step), "train_loss": str(1 / step), "val_loss": "", "val_top1": ""}
        )
        if step % 4 == 0:
            measured = {"val_loss": str(2 / step), "val_top1": str(0.5 * epoch)}
            rows.append({"epoch": str(epoch), "step": str(step), "train_loss": "", **measured})
    digits = tuple(Digit(3, 5, 0.9, image) for _ in range(wrong))
    unsure = tuple(Digit(7, 7, 0.4, image) for _ in range(SHOWN))
    return Result(model, 1 - wrong / 360, 360, digits, unsure, rows)


@pytest.mark.parametrize("wrong", [0, 3, 12])
def test_digits_and_curves(wrong, tmp_path, figures):
    draw([result("first", wrong), result("second", 1)], 0.98, tmp_path / "demo.png")
    loss, error, *others = figures.pop().axes
    curves = [line for line in loss.lines if len(line.get_xdata())]
    assert list(curves[0].get_xdata()) == [0.5, 1, 1.5, 2]
    assert list(curves[0].get_ydata()) == [1 / 2, 1 / 4, 1 / 6, 1 / 8]
    smoothed = (0.8 * 1 / 2 + 1 / 4) / 1.8  # of the first two: weights 0.8 and 1
    assert curves[1].get_ydata()[1] == pytest.approx(smoothed)
    assert (list(curves[2].get_xdata()), list(curves[2].get_ydata())) == ([1, 2], [0.5, 0.25])
    assert list(error.lines[0].get_ydata()) == [50, 0.21]  # no error is drawn at the foot of the logarithmic axis
    headers = [axes.get_title(loc="left") for axes in others if axes.get_title(loc="left")]
    more = {
        0: "; correct, with the lowest confidence: the following",
        3: "; correct, with the lowest confidence: the others",
        12: f", the {SHOWN} most confident",
    }
    assert headers[0] == f"first: {wrong} of 360 read wrongly{more[wrong]}"
    captions = [axes.get_title() for axes in others if axes.get_title()][:SHOWN]
    shown = min(wrong, SHOWN)
    assert captions == ["3 read as 5"] * shown + ["7, right"] * (SHOWN - shown)
