"""examples/tree_crowns.py: from photographs with Pascal VOC boxes to a trained detector and drawn results."""

import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parent.parent / "examples" / "tree_crowns.py"


@pytest.fixture
def photos(tmp_path):
    """Four photographs of 128 x 64, each with four dark green squares on a brown ground."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(120, 160, (64, 128, 3), dtype=np.uint8)
        objects = ""
        for column in range(4):
            x, y = 32 * column + int(generator.integers(0, 12)), int(generator.integers(0, 44))
            pixels[y : y + 20, x : x + 20] = (20, 90, 30)
            corners = dict(xmin=x + 1, ymin=y + 1, xmax=x + 20, ymax=y + 20)
            box = "".join(f"<{name}>{value}</{name}>" for name, value in corners.items())
            name = "Tree" if column else "Dead"
            objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.xml").write_text(f"<annotation><filename>{number}.png</filename>{objects}</annotation>")
    return folder


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tree_crowns.py", *map(str, words)])
    return runpy.run_path(str(SCRIPT))["main"]()


def test_the_whole_way(photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "trees"
    figures = run(monkeypatch, out, "--photos", photos, "--tile", 64, "--epochs", 1)
    shown = capsys.readouterr().out
    assert "train: 6 images, 12 objects" in shown and "val: 2 images, 4 objects" in shown
    assert "2 classes became tree: Dead, Tree" in shown and "1 of 4 images validate" in shown
    assert figures["images"] == 2 and 0 <= figures["box_ap"] <= figures["box_ap50"] <= 1 and "mask_ap" not in figures
    assert f"box AP50 {figures['box_ap50']:.3f}" in shown
    tiles = sorted(path.stem for path in (out / "data" / "val").iterdir())
    assert sorted(path.stem for path in (out / "found").iterdir()) == tiles and len(tiles) == 2
    results = [json.loads(line) for line in (out / "found.jsonl").read_text().splitlines()]
    assert [(one["height"], one["width"]) for one in results] == [(64, 64)] * 2
    assert all(found["name"] == "tree" for one in results for found in one["objects"])
    assert sum(1 for _ in (out / "run" / "checkpoints").glob("*.ckpt")) == 2


def test_an_error_of_a_command_ends_it(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "trees" / "data").mkdir(parents=True)
    (tmp_path / "trees" / "data" / "file").touch()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path / "trees", "--photos", photos)
    assert caught.value.code == 1 and "is not empty; name a new folder" in capsys.readouterr().err


def test_photographs_are_unpacked_once(tmp_path, monkeypatch):
    photographs, calls = runpy.run_path(str(SCRIPT))["photographs"], []

    def download(command, **_):
        calls.append(command)
        with zipfile.ZipFile(tmp_path / "deepforest-2.1.0-py3-none-any.whl", "w") as wheel:
            for name in ("data/a.png", "data/a.xml", "data/b.tif", "data/list.csv", "main.py"):
                wheel.writestr(f"deepforest/{name}", name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    folder = photographs(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "a.xml", "b.tif"]
    assert photographs(tmp_path) == folder and len(calls) == 1
    assert {"--no-deps", "deepforest==2.1.0"} < set(calls[0]) and calls[0][0] == sys.executable
    assert not any("://" in str(word) for word in calls[0])


def test_photographs_that_cannot_be_had(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for deepforest==2.1.0\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT))["photographs"](tmp_path / "cache")
    told = f"put that file into {tmp_path / 'cache'}. pip reports:\nERROR: No matching distribution"
    assert "deepforest 2.1.0, which pip cannot download" in str(caught.value) and told in str(caught.value)


@pytest.mark.full
def test_the_real_photographs(tmp_path, monkeypatch, capsys):
    """The first epochs, in a few minutes; skipped where the photographs cannot be had."""
    try:
        figures = run(monkeypatch, tmp_path / "trees", "--epochs", 4)
    except SystemExit as error:
        if "pip cannot download" in str(error):
            pytest.skip(str(error).splitlines()[0])
        raise
    shown = capsys.readouterr().out
    assert "train: 44 images, 842 objects" in shown and "val: 12 images, 424 objects" in shown
    assert figures["box_ap50"] > 0.1
