import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vssm.data.preprocess import Preprocess
from vssm.data.splits import load_splits
from vssm.settings import DataSettings
from vssm_cli.command import main


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dög"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_in_a_process_of_its_own(images):
    """There `import vssm` imports nothing: the command must bring what it needs."""
    argv = [sys.executable, "-m", "vssm", "check", str(images), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def check(images, capsys, *more):
    code = main(["check", str(images), *more])
    return code, capsys.readouterr().out


def test_nothing_to_repair(images, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, shown = check(images, capsys)
    assert code == 0
    rows = [line.split("│")[1:4] for line in shown.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["cat", "4", "2"],
        ["dög", "4", "2"],
        ["all 2 classes", "8", "4"],
    ]
    assert "shorter side: 20 to 23 pixels, median 21" in shown
    assert "kinds: PNG RGB 12" in shown
    assert "every image can be read; no image is in two splits or in two classes" in shown


def test_what_is_wrong_is_named(images, capsys):
    train, val = images / "train", images / "val"
    (train / "cat" / "0.png").write_bytes(b"damaged")
    (train / "cat" / "line\nbreak.jpg").touch()
    shutil.copy(train / "dög" / "1.png", val / "dög" / "leak.png")
    shutil.copy(train / "cat" / "2.png", train / "dög" / "conflict.png")
    shutil.copy(val / "cat" / "0.png", val / "cat" / "copy.png")
    code, shown = check(images, capsys)
    assert code == 1
    assert "2 images cannot be read:" in shown
    assert f"  {train / 'cat' / '0.png'}: not an image, or of a kind that Pillow cannot read\n" in shown
    assert f"{train / 'cat'}/line\\nbreak.jpg: empty file\n" in shown
    assert f"in more than one split, to the byte:\n  {train / 'dög' / '1.png'} = {val / 'dög' / 'leak.png'}\n" in shown
    assert (
        f"in more than one class, to the byte:\n  {train / 'cat' / '2.png'} = {train / 'dög' / 'conflict.png'}" in shown
    )
    assert "1 file repeats another of its class and split, to the byte" in shown
    code, shown = check(images, capsys, "--json", "--threads", "1")
    assert code == 1
    found = json.loads(shown)
    assert found["counts"] == {"train": {"cat": 3, "dög": 5}, "val": {"cat": 3, "dög": 3}}
    assert [entry["reason"] for entry in found["unreadable"]][1] == "empty file"
    assert found["in_several_splits"] == [[str(train / "dög" / "1.png"), str(val / "dög" / "leak.png")]]
    assert found["in_several_classes"] == [[str(train / "cat" / "2.png"), str(train / "dög" / "conflict.png")]]
    assert (found["copies"], found["kinds"]) == (1, {"PNG RGB": 14})


def test_a_folder_without_val_is_split_as_training_would(images, capsys):
    shutil.rmtree(images / "val")
    shutil.copytree(images / "train" / "cat", images / "test" / "cat")
    code, shown = check(images, capsys, "--json")
    assert code == 1, "the test images are those of training"
    found = json.loads(shown)
    split = load_splits(DataSettings("imagefolder", root=str(images)), Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3))
    counts = {name: sum(counts.values()) for name, counts in found["counts"].items()}
    assert counts == {"train": len(split.train), "val": len(split.val), "test": 4}
    assert len(found["in_several_splits"]) == 4


def test_many_classes_are_summed_up(tmp_path, capsys):
    for number in range(25):
        folder = tmp_path / f"class{number:02d}"
        folder.mkdir()
        for image in range(2 + (number == 7) * 3):
            Image.new("L", (8, 8), number * 8 + image).save(folder / f"{image}.png")
    code, shown = check(tmp_path, capsys)
    assert code == 0
    assert "largest: class07" in shown
    assert "all 25 classes" in shown


def test_bad_use(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none")]) == 1
    assert "none does not exist; expected" in capsys.readouterr().err
    assert main(["check", str(tmp_path), "--threads", "0"]) == 2
