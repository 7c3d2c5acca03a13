"""vssm plan."""

import json

import pytest

from vssm_cli.command import main

GIVEN = [
    "--model",
    "vmamba_nano",
    "--image-size",
    "32",
    "--images-per-second",
    "512",
    "--loader-images-per-second",
    "90",
]


def test_json(capsys):
    argv = ["plan", *GIVEN, "--data-size", "12800", "--gpus", "4", "--epochs", "10", "--bandwidth", "2", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    steps = 12800 // (4 * 128)
    assert found["forecast"]["hours"] == steps * 10 * (128 / 512) / 3600
    assert found["forecast"]["sent_bytes"] == 2 * 3 * found["figures"]["gradient_bytes"] // 4
    assert found["forecast"]["loader_cores"] == 6 and found["asked"]["bandwidth"] == 2e9
    assert found["assumed"][0] == "A device trains 512 images/s: given."


def test_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plan", *GIVEN, "--data-size", "1281167", "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    assert "300 epochs of 1251 steps of 8 x 128 = 1024 images of 32" in shown
    assert "250 ms (250 ms of computing), 4,096 images/s in all" in shown
    assert "26.1 hours, 208 device hours" in shown
    assert "512 images/s per device; a loader core gives 90: 6 cores per device, 48 in all" in shown
    assert "note: The all-reduce is hidden behind the backward." in shown


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--data-size", "100"], 2, "--data-size 100 is less than one step of 1 x 128 images; a smaller --batch-size"),
        (["--data-size", "1000", "--gpus", "0"], 2, "--gpus must be at least 1, not 0"),
        (["--data-size", "1000", "--images-per-second", "0"], 2, "--images-per-second must be above 0, not 0"),
        (["--data-size", "1000", "--model", "vmamba_nan"], 1, "unknown model 'vmamba_nan'; nearest: vmamba_nano"),
        (["--data-size", "many"], 2, "argument --data-size: invalid int value: 'many'"),
        ([], 2, "the following arguments are required: --data-size"),
    ],
)
def test_mistakes_are_one_line(argv, code, words, capsys):
    assert main(["plan", *GIVEN, *argv]) == code
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("\n") == 1 and shown.out == ""
