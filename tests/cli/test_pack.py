import json

import numpy as np
import pytest
from PIL import Image

from vssm.inference.run_dir import RunDir
from vssm_cli.command import main

FIT = ("fit", "--model=vmamba_nano", "--model.args={dims: [8, 16], depths: [1, 1]}", "--image-size=32")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "out"
    assert main(["pack", str(images), str(out), "--shard-size", "16KB"]) == 0
    return out


def fit(out, *more):
    return main([*FIT, "--out", str(out), "--batch-size=4", "--epochs=1", "--accelerator=cpu", *more])


def test_what_is_packed_is_reported_and_verified(images, packed, tmp_path, capsys):
    assert main(["pack", str(images), str(tmp_path / "out"), "--shard-size", "16KB", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "train: 16 images in " in shown and "val: 8 images in " in shown and "test: 8 images in " in shown
    assert f"next: vssm fit --data.root {tmp_path / 'out'}" in shown
    for command in (["check", str(packed)], ["pack", "--verify", str(packed / "train")]):
        assert main(command) == 0
        assert "every shard is as it was packed" in capsys.readouterr().out
    shard = tmp_path / "out" / "val" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert main(["pack", "--verify", str(tmp_path / "out")]) == 1
    assert "1 damaged shards" in (shown := capsys.readouterr().out) and str(shard) in shown
    assert main(["check", str(tmp_path / "out"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found[str(tmp_path / "out" / "train")]["problems"] == []
    assert len(found[str(tmp_path / "out" / "val")]["problems"]) == 1


@pytest.mark.parametrize(
    ("argv", "words", "code"),
    [
        ([], "expected two folders: vssm pack DIR OUT", 2),
        (["a", "b", "--shard-size", "0"], "--shard-size is 0; expected a size such as 256MB", 2),
        (["a", "b", "--shard-size", "3TB"], "--shard-size is 3TB", 2),
        (["a", "b", "--threads", "0"], "--threads must be at least 1", 2),
        (["a", "b", "--verify", "c"], "--verify checks c alone; leave out a", 2),
        (["nowhere", "b"], "nowhere does not exist", 1),
        (["--verify", "nowhere"], "nowhere has no shards.json", 1),
    ],
)
def test_bad_usage_is_one_line(argv, words, code, capsys):
    assert main(["pack", *argv]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_training_and_evaluation_on_shards(images, packed, tmp_path, capsys):
    assert fit(tmp_path / "run", f"--data.root={packed}") == 0
    capsys.readouterr()
    found = []
    for argv in (
        ["validate"],
        ["validate", f"--data.val={packed / 'val'}"],
        ["validate", f"--data.root={images}"],
        ["test"],
        ["test", f"--data.root={images}"],
        ["test", f"--data.test={packed / 'test'}"],
    ):
        assert main([*argv, "--checkpoint", str(tmp_path / "run"), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    losses = [pytest.approx(one["loss"], rel=1e-5) for one in found]
    assert found[0]["loss"] == losses[1] == losses[2] and found[3]["loss"] == losses[4] == losses[5]
    assert found[0]["images"] == 8 and found[0]["loss"] != losses[3]
    assert fit(tmp_path / "none", f"--data.val={packed / 'val'}") == 1
    assert "no folder has no training images; give --data.train SHARDS" in capsys.readouterr().err


def test_damaged_samples_are_replaced_or_stop_the_run(packed, tmp_path, capsys):
    import shutil

    shutil.copytree(packed, tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / "train" / "shards.json").read_bytes())["shards"][0]
    path = tmp_path / "packed" / "train" / index["name"]
    content = bytearray(path.read_bytes())
    content[index["offsets"][0] : index["offsets"][0] + 64] = bytes(64)
    path.write_bytes(content)
    root = f"--data.root={tmp_path / 'packed'}"
    with pytest.warns(UserWarning, match=f"{index['name']}/{index['keys'][0]}: not an image"):
        assert fit(tmp_path / "run", root, "--data.max_unreadable=0.1", "--workers=1") == 0
    assert f"{index['name']}/{index['keys'][0]}" in RunDir(tmp_path / "run").unreadable.read_text()
    with pytest.warns(UserWarning):
        assert fit(tmp_path / "stopped", root) == 1
    error = capsys.readouterr().err
    assert "1 of 16 training images cannot be read, more than data.max_unreadable 0.001 allows" in error
    assert index["keys"][0] in error
