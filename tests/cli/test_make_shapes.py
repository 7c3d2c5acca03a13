import json

import pytest

from vssm_cli.command import main


def test_files_and_summary(tmp_path, capsys):
    root = tmp_path / "shapes"
    assert main(["make-shapes", str(root), "--train", "3", "--val", "2", "--size", "40-50", "--crops", "2"]) == 0
    shown = capsys.readouterr().out
    objects = json.loads((root / "annotations" / "instances_train.json").read_text())["annotations"]
    assert f"train: 3 images, {len(objects)} objects of 5 classes" in shown
    assert "crops: 2 training and 1 validation images of each class" in shown
    assert len(list(root.rglob("*.png"))) == 2 * (3 + 2) + 5 * (2 + 1)
    assert main(["make-shapes", str(root)]) == 1
    assert "is not empty; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (("--size", "16"), "--size is 16; expected pixels from 32 to 4096"),
        (("--size", "90-80"), "--size is 90-80"),
        (("--size", "big"), "--size is big"),
        (("--train", "0"), "--train must be at least 1, not 0"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--crops", "0"), "--crops must be at least 1"),
    ],
)
def test_bad_use(tmp_path, capsys, argument, message):
    assert main(["make-shapes", str(tmp_path / "shapes"), *argument]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "shapes").exists()
