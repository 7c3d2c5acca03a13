"""A run directory that version 0.1 wrote goes on working: read, evaluated, predicted with, resumed, trained further.

`data/run_of_0.1` holds the images, the run (interrupted in step 17 of 24) and, in expected.json, what that version's
commands answered and logged on it.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from vssm.report.write import write_report
from vssm.train.callbacks import read_metrics
from vssm_cli.command import main

FIXTURE = Path(__file__).parent / "data" / "run_of_0.1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())


@pytest.fixture
def there(tmp_path, monkeypatch):
    """In a copy of it: the run names its images by a relative path."""
    shutil.copytree(FIXTURE, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("VSSM_RUN_DIR", raising=False)


def close(value):
    return pytest.approx(value, rel=1e-4, abs=1e-5)


def test_predict(there, capsys):
    assert main(["predict", "images/test", "--checkpoint", "run", "--json", "--top-k", "3"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in found] == [line["path"] for line in EXPECTED["predict"]]
    for line, expected in zip(found, EXPECTED["predict"], strict=True):
        assert [one["name"] for one in line["classes"]] == [one["name"] for one in expected["classes"]]
        probabilities = [one["probability"] for one in line["classes"]]
        assert probabilities == close([one["probability"] for one in expected["classes"]])


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluate(there, capsys, command):
    assert main([command, "--checkpoint", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("checkpoint") == EXPECTED[command]["checkpoint"]
    assert found.pop("split") == EXPECTED[command]["split"]
    assert found == close({name: EXPECTED[command][name] for name in ("loss", "top1", "images", "unreadable")})


def test_report(there):
    expected = EXPECTED["report"]
    (report,) = write_report(["run"], "page.html")
    quality = report.quality
    assert (quality.loss, quality.top1, quality.ece) == close((expected["loss"], expected["top1"], expected["ece"]))
    assert quality.confusion.tolist() == expected["confusion"]
    precision = [math.nan if value is None else value for value in expected["precision"]]
    assert quality.precision.tolist() == pytest.approx(precision, nan_ok=True)
    found = [(m.index, m.truth, m.read, close(m.confidence)) for m in quality.mistakes]
    assert found == [tuple(mistake) for mistake in expected["mistakes"]]
    assert (report.multiply_adds, list(report.trained_on)) == (expected["multiply_adds"], expected["trained_on"])


def test_resume(there):
    assert main(["fit", "--resume", "run"]) == 0
    assert_rows("run/metrics.csv", EXPECTED["resume"])


def test_init_from(there):
    argv = ["fit", "--init-from", "run", "--model", "vmamba_nano", "--model.args", "{dims: [8, 16], depths: [1, 1]}"]
    argv += ["--data.root", "images", "--image-size", "16", "--batch-size", "4", "--epochs", "1"]
    argv += ["--trainer.log-every-n-steps", "1", "--accelerator", "cpu", "--out", "further"]
    assert main(argv) == 0
    assert_rows("further/metrics.csv", EXPECTED["init_from"])


def assert_rows(file, expected):
    rows = read_metrics(Path(file))
    assert {row["skipped_steps"] for row in rows} <= {"", "0"}  # a column that version had not
    later = ("images_per_second", "skipped_steps")
    found = [{name: float(cell) for name, cell in row.items() if cell and name not in later} for row in rows]
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert row == close({name: float(cell) for name, cell in wanted.items()})


def test_checkpoints_are_plain_data():
    for file in ("last.ckpt", "best.ckpt"):
        stored = torch.load(FIXTURE / "run" / "checkpoints" / file, weights_only=True)
        assert stored["vssm"]["format"] == 1
