"""vssm table."""

import csv
import io
import json
from pathlib import Path

import pytest

from vssm.analysis.tables import NAMES
from vssm_cli.command import main

ROWS = ["--rows", "cascade", "cross"]


def test_the_list(capsys):
    assert main(["table"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)


def test_rich_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["table", "scan-patterns", *ROWS]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cascade", "[1]", "vmamba_tiny", "scan=cascade", *"30.25 30.2 +0.2 4.918 4.91 +0.2 82.42".split()] in lines
    assert ["cross", "vmamba_tiny", "30.25", "30.2", "+0.2", "4.906", "4.91", "-0.1", "82.60"] in lines
    assert lines[1] == "row built as M params paper off, % G macs paper off, % top-1, % (paper)".split()
    text = " ".join(word for line in lines for word in line)
    assert "accuracy was not measured here" in text and "[1] With both of its parameter-free norms" in text


def test_no_figure_is_cut_off_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["table", "scan-patterns", *ROWS]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cross", "vmamba_tiny", "30.25", "30.2", "+0.2", "4.906", "4.91", "-0.1", "82.60"] in lines
    assert lines[1] == "row built as M params paper off, % G macs paper off, % top-1, % (paper)".split()


def test_csv_json_and_markdown_agree(capsys):
    forms = {}
    for form in ("csv", "json", "markdown"):
        assert main(["table", "scan-patterns", *ROWS, f"--{form}"]) == 0
        forms[form] = capsys.readouterr().out
    document = json.loads(forms["json"])
    assert document["table"] == "scan-patterns" and list(document["notes"]) == ["cascade"]
    cascade, cross = document["rows"]
    assert (cascade["macs"], cascade["as_printed"], cross["as_printed"]) == (4918254336, False, True)
    read = list(csv.DictReader(io.StringIO(forms["csv"])))
    assert [row["row"] for row in read] == ["cascade", "cross"]
    assert (read[0]["macs"], read[0]["gmacs_paper"], read[1]["notes"]) == ("4918254336", "4.91", "")
    assert "\n| cross | vmamba_tiny | 30.25 | 30.2 | +0.2 | 4.906 | 4.91 | -0.1 | 82.60 |\n" in forms["markdown"]


def test_the_page_shows_what_is_printed(capsys):
    assert main(["table", "d-state", "--markdown"]) == 0
    page = Path(__file__).parents[2] / "docs" / "tables.md"
    assert capsys.readouterr().out.strip() in page.read_text(encoding="utf-8")


def test_measured_beside_a_row_that_is_not_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("vssm.analysis.tables.measure.peak_memory", lambda row, conditions: 123.4)
    picture = tmp_path / "picture.png"
    argv = ["table", "scan-patterns", "--rows", "cascade", "--relative-to", "cross", "--measure", "--image-size", "32"]
    assert main([*argv, "--seconds", "0.01", "--threads", "1", "--json", "--plot", str(picture)]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    (row,) = document["rows"]
    assert row["ratio_paper"] == 0.5919 and 0 < row["ratio"] < 2 and row["peak_mb"] == 123.4
    assert document["measured"].startswith("inference, 1 at a time, 32 x 32, float32, cpu, 1 threads, medians of ")
    assert picture.exists() and str(picture) in shown.err.replace("\n", "")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["imagnet"], 1, "there is no table 'imagnet'; nearest: imagenet"),
        (["d-state", "--rows", "d_state=3"], 1, "table d-state has no row 'd_state=3'; nearest: d_state="),
        (["d-state", "--measure", "--relative-to", "swin"], 1, "table d-state has no row 'swin'"),
        (
            ["d-state", "--plot", "x.png"],
            1,
            "the papers draw no figure of table d-state; --plot goes with imagenet, acc",
        ),
        (["resolution", "--measure", "--image-size", "64"], 1, "the rows of table resolution differ in their image"),
        (["d-state", "--batch", "2"], 2, "--batch applies to measuring: add --measure"),
        (["d-state", "--measure", "--seconds", "0"], 2, "--seconds must be above 0, not 0.0"),
        (["acceleration", "--plot", "x.jpg"], 2, "--plot writes a file that ends in .png, not x.jpg"),
        (["--json"], 2, "which table? `vssm table` lists them"),
        (["d-state", "--json", "--csv"], 2, "not allowed with argument --json"),
    ],
)
def test_mistakes(argv, code, words, capsys):
    assert main(["table", *argv]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and words in shown.err and shown.err.count("\n") == 1
