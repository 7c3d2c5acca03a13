import math

import pytest

from vssm.report.history import read_history

HEADER = "epoch,step,lr,train_loss,val_loss,val_top1,val_top5,images_per_second\r\n"


def history_of(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode())
    return read_history(path)


def test_rows_and_points(tmp_path):
    found = history_of(tmp_path, HEADER + "1,10,0.1,2.5,,,,100\r\n1,20,0.2,1.5,,,,50\r\n1,20,,,1.25,0.5,0.9,\r\n")
    assert found.dropped == 0
    assert found.points("train_loss") == [(10, 2.5), (20, 1.5)]
    assert found.points("val_top1", "epoch") == [(1, 0.5)]
    assert found.images_per_second() == 75
    # 10 steps of 8 images at 100 images/s, then 10 at 50.
    assert found.seconds(8) == pytest.approx(0.8 + 1.6)
    assert found.first_not_finite() is None


@pytest.mark.parametrize(
    "end", ["1,20,0.2", "1,20,0.2,1.5,,,,12", "1,20,0.2,one,,,,1\r\n", "1,20,0.2,1.5\r\n", "\0\0\0\n"]
)
def test_a_line_that_is_not_whole_is_dropped(tmp_path, end):
    found = history_of(tmp_path, HEADER + "1,10,0.1,2.5,,,,100\r\n" + end)
    assert (len(found.rows), found.dropped) == (1, 1)


def test_nan_is_kept_and_found(tmp_path):
    found = history_of(tmp_path, HEADER + "1,10,0.1,2.5,,,,9\r\n1,20,0.1,nan,,,,9\r\n1,20,,,inf,0.1,,\r\n")
    assert math.isnan(found.points("train_loss")[1][1])
    assert found.first_not_finite() == ("train_loss", 20)


def test_no_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv does not exist"):
        read_history(tmp_path / "metrics.csv")
    for text in ("", "a,b\r\n1,2\r\n"):
        with pytest.raises(ValueError, match=r"is not a metrics\.csv"):
            history_of(tmp_path, text)
