"""vssm runs: a table, a plot, and two runs compared to the last bit."""

import subprocess

import pytest
import torch
from PIL import Image

from tests.train.interrupted import train
from tests.train.tiny import tiny_settings
from vssm.report.runs import first_difference
from vssm.train.environment import git_state
from vssm_cli.command import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """a and b of one seed, one of them killed and resumed, and c of another."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, kill_at in (("a", 0, None), ("b", 0, 2), ("c", 1, None)):
        settings = tiny_settings(seed=seed, save_every_n_steps=1)
        settings.trainer.max_epochs = 1
        train(folder / name, settings, kill_at)
    return folder


def test_a_table_and_a_plot(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["runs", str(runs), "--plot", str(tmp_path / "curves.png")]) == 0
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "vmamba_nano" in line]
    found = [[cell.strip() for cell in line] for line in lines]
    assert [row[:6] for row in found] == [[n, "vmamba_nano", "digits", s, "1/1", "4"] for n, s in zip("abc", "001")]
    assert found[0][6:10] == found[1][6:10]
    assert Image.open(tmp_path / "curves.png").size == (1300, 546)
    assert main(["runs", str(tmp_path)]) == 1
    assert "has no run directory" in capsys.readouterr().err


def test_equal_and_different(runs, capsys):
    assert main(["runs", "--assert-equal", str(runs / "a"), str(runs / "b")]) == 0
    assert capsys.readouterr().out.startswith("equal: ")
    assert main(["runs", "--assert-equal", str(runs / "a"), str(runs / "c")]) == 1
    assert "different: metrics.csv, row 1 (step 1), train_loss: 2." in capsys.readouterr().out


def test_one_bit_of_a_weight(runs, capsys):
    file, name = runs / "b" / "checkpoints" / "last.ckpt", "task.model.head.fc.weight"
    before = file.read_bytes()
    content = torch.load(file, weights_only=True)
    weight = content["current_model_state"][name]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    torch.save(content, file)
    assert f"last.ckpt, current_model_state: {name} by up to" in str(first_difference(runs / "a", runs / "b"))
    file.write_bytes(before)
    assert first_difference(runs / "a", runs / "b") is None


def test_the_state_of_the_code(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    assert git_state(tmp_path) == {}
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    commit = git_state(tmp_path)["git"]
    assert len(commit) == 12
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {"git": f"{commit} (changed)"}
