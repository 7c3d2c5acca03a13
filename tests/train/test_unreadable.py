"""Damaged images while training: left out, counted, named; too many of them stop the run."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.interrupted import same_tensors, train
from tests.train.tiny import tiny_settings
from vssm.data.unreadable import TooManyUnreadable, Unreadable, check_share, read_unreadable
from vssm.inference.evaluate import evaluate
from vssm.inference.run_dir import RunDir
from vssm.settings import DataSettings
from vssm.train.fit import build
from vssm_cli.command import main


@pytest.fixture
def images(tmp_path):
    """Two classes with eight images to train and four to validate each."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    return tmp_path / "images"


def damage(images, *names):
    for name in names:
        (images / name).write_bytes(b"damaged")


def settings_for(images, **changes):
    settings = tiny_settings(**changes)
    settings.data.name, settings.data.root = "imagefolder", str(images)
    settings.data.image_size, settings.data.batch_size, settings.data.max_unreadable = 32, 4, 0.5
    settings.trainer.limit_train_batches = settings.trainer.limit_val_batches = None
    return settings


def test_resume_is_exact(images, tmp_path):
    damage(images, "train/cat/3.png", "train/dog/0.png", "val/cat/1.png")
    with pytest.warns(
        UserWarning, match=r"Images that cannot be read are left out; all are named in .*unreadable\.csv"
    ):
        _, whole_rows, whole = train(tmp_path / "whole", settings_for(images))
    settings = settings_for(images, save_every_n_steps=1)
    settings.data.workers = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, resumed_rows, resumed = train(tmp_path / "resumed", settings, kill_at=6)
    assert len(whole_rows) == 15
    assert resumed_rows == whole_rows
    same_tensors(resumed["state_dict"], whole["state_dict"])
    reason = "not an image, or of a kind that Pillow cannot read"
    expected = {str(images / name): reason for name in ("train/cat/3.png", "train/dog/0.png", "val/cat/1.png")}
    for name in ("whole", "resumed"):
        file = RunDir(tmp_path / name).unreadable
        assert read_unreadable(file) == expected
        assert len(file.read_text().splitlines()) == 4, "each once, also after a resume"


def test_a_row_cut_off_is_left_out(tmp_path):
    (tmp_path / "unreadable.csv").write_text('path,reason\na.jpg,cut\n"b,\nc.jpg",cut\nd.jp')
    assert read_unreadable(tmp_path / "unreadable.csv") == {"a.jpg": "cut", "b,\nc.jpg": "cut"}


FIT = ("fit", "--model=vmamba_nano", "--model.args={dims: [8, 16], depths: [1, 1]}", "--image-size=32")


def run_fit(images, out, *more):
    return main([*FIT, "--data.root", str(images), "--out", str(out), "--batch-size=4", "--accelerator=cpu", *more])


def test_another_table_is_refused(tmp_path):
    (tmp_path / "unreadable.csv").write_text("file,why\na.jpg,cut\n")
    with pytest.raises(ValueError, match=r"has the columns \['file', 'why'\], not \['path', 'reason'\]"):
        read_unreadable(tmp_path / "unreadable.csv")


def test_the_commands_count(images, tmp_path, capsys):
    damage(images, "train/cat/3.png", "val/cat/1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_fit(images, tmp_path / "run", "--epochs=2", "--data.max_unreadable=0.2") == 0
    shown = capsys.readouterr().out
    assert shown.count("1 unreadable") == 2, "in the line of each epoch"
    assert f"2 images could not be read: {tmp_path / 'run' / 'unreadable.csv'}" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["validate", "--checkpoint", str(tmp_path / "run"), "--json"]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert (measured["images"], measured["unreadable"]) == (7, 1)
        assert main(["validate", "--checkpoint", str(tmp_path / "run")]) == 0
    assert "unreadable" in capsys.readouterr().out


@pytest.mark.parametrize(("part", "of"), [("train", 16), ("val", 8)])
def test_more_than_the_allowed_share_is_an_error(images, tmp_path, capsys, part, of):
    names = sorted(path.relative_to(images).as_posix() for path in (images / part).rglob("*.png"))
    allowed = "--data.max_unreadable=0.25"
    damage(images, *names[: of // 4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_fit(images, tmp_path / "allowed", "--epochs=1", allowed) == 0
        capsys.readouterr()
        damage(images, names[of // 4])
        assert run_fit(images, tmp_path / "more", "--epochs=1", allowed) == 1
    error = capsys.readouterr().err
    kind = {"train": "training", "val": "validation"}[part]
    count = of // 4 + 1
    assert f"vssm: error: {count} of {of} {kind} images cannot be read, more than data.max_unreadable 0.25" in error
    assert f"all in {tmp_path / 'more' / 'unreadable.csv'}" in error and "Traceback" not in error
    assert all(f"{images / name}: not an image" in error for name in names[: min(count, 5)])
    assert len(read_unreadable(RunDir(tmp_path / "more").unreadable)) == count
    assert not RunDir(tmp_path / "more").best.exists()


@pytest.mark.full
@pytest.mark.parametrize(("damaged", "kind"), [("train/dog/5.png", "training"), ("val/cat/1.png", "validation")])
def test_two_processes_stop_together(images, tmp_path, damaged, kind):
    """The image is in the share of one; the first tells, and the list has it, whichever of the two it is."""
    damage(images, damaged)
    argv = [sys.executable, "-m", "vssm", *FIT, "--data.root", str(images), "--out", str(tmp_path / "run")]
    argv += ["--batch-size=2", "--accelerator=cpu", "--devices=2", "--epochs=3", "--data.max_unreadable=0.1"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 1, run.stderr
    (error,) = [line for line in run.stderr.splitlines() if "error" in line]
    count = {"training": 8, "validation": 4}[kind]
    words = rf"vssm: error: (process 1 of 2: )?1 of {count} {kind} images cannot be read, .*{damaged}: not an image"
    assert re.match(words, error), error
    assert "Traceback" not in run.stderr
    assert list(read_unreadable(RunDir(tmp_path / "run").unreadable)) == [str(images / damaged)]


def test_one_in_a_thousand_is_allowed():
    damaged = [Unreadable(f"{number}.jpg", "cut") for number in range(8)]
    check_share(damaged[:1], 1000, DataSettings().max_unreadable, "training")
    with pytest.raises(TooManyUnreadable, match=r"^1 of 999 training .* 0\.001 allows \(0\.jpg: cut\); repair"):
        check_share(damaged[:1], 999, DataSettings().max_unreadable, "training")
    with pytest.raises(TooManyUnreadable, match=r"4\.jpg: cut; and 3 more, all in x\.csv\)"):
        check_share(damaged, 1000, 0.001, "training", Path("x.csv"))
    check_share(damaged, 8, 1.0, "training")


def test_when_nothing_can_be_read(images):
    damage(images, *(path.relative_to(images).as_posix() for path in images.rglob("*.png")))
    with pytest.raises(TooManyUnreadable, match="of 8 validation images cannot be read"):
        experiment = build(settings_for(images))
        evaluate(experiment.model, experiment.task, experiment.splits)
