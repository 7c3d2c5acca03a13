"""vssm resolution."""

import csv
import shutil
from pathlib import Path

import pytest

from vssm_cli.command import main

DATA = Path(__file__).parents[1] / "data" / "run_of_0.1"


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    shutil.copytree(DATA / "images", tmp_path / "images")
    shutil.copytree(DATA / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)


def test_table_and_figure(capsys, figures):
    argv = ["resolution", "run", "images", "--sizes", "32", "48", "--seconds", "0.001", "--linear"]
    assert main([*argv, "--with", "run/checkpoints/best.ckpt", "--out", "t.csv", "t.md", "t.png", "t.svg"]) == 0
    shown = capsys.readouterr()
    with Path("t.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["vmamba_nano (run)", "vmamba_nano (run/checkpoints/best.ckpt)"]
    assert [(row["model"], row["size"]) for row in rows] == [(name, size) for size in ("32", "48") for name in names]
    assert rows[0]["top1"] == rows[1]["top1"] and float(rows[0]["images_per_second"]) > 0
    line = next(line for line in Path("t.md").read_text().splitlines() if line.startswith("| vmamba_nano (run) | 48"))
    assert f"| {100 * float(rows[2]['top1']):.2f} | {100 * float(rows[2]['top1_linear']):.2f} |" in line
    assert all(name in shown.out for name in names) and "images at a time: 64 at 32, 28 at 48" in shown.out
    drawn = figures[0].axes
    assert [axes.get_title(loc="left") for axes in drawn] == [
        "Top-1 without tuning, %",
        "Top-1, last layer tuned, %",
        "G multiply-adds",
        "Images per second",
    ]
    (first, _) = drawn[0].get_lines()
    assert list(first.get_xdata()) == [32, 48]
    assert list(first.get_ydata()) == pytest.approx([100 * float(rows[i]["top1"]) for i in (0, 2)])
    assert Path("t.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["run", "images", "--sizes", "0"], 2, "--sizes must be at least 1, not 0"),
        (["run", "images", "--out", "a.txt"], 2, "--out a.txt must end in .csv, .md, .png, .pdf, .svg"),
        (["run", "images", "--out", "no/a.md"], 2, "no is not there; make the folder first"),
        (["run", "images", "--seconds", "0", "--train"], 2, "--seconds must be above 0"),
        (["run", "nowhere"], 1, "nowhere does not exist"),
        (["run_", "images"], 1, "unknown model 'run_'"),
        (["run", "images", "--device", "nothing"], 1, "device 'nothing' is not available here"),
    ],
)
def test_mistakes_are_one_line(argv, code, words, capsys):
    assert main(["resolution", *argv]) == code
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("\n") == 1 and shown.out == ""
