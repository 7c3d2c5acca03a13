"""vssm predict: what goes in, what comes out, and that it comes out whole."""

import csv
import io
import json
import os
import resource
import shutil
import sys
import tracemalloc
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import vssm.inference.predict
from vssm.data.preprocess import Preprocess
from vssm.inference.predict import Prediction, predict
from vssm.tasks import TASKS
from vssm.weights.rename import VIM, to_official
from vssm_cli.command import main
from vssm_cli.predictions import Csv, JsonLines, Lines, Screen


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "digits"
    argv = ["fit", "--config", "digits", "--out", str(path), "--epochs", "1", "--accelerator=cpu", "--batch-size=16"]
    limits = ["--trainer.limit-train-batches=2", "--trainer.limit-val-batches=1"]
    assert main([*argv, *limits, "--model.args={dims: [8, 16], depths: [1, 1]}"]) == 0
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """a.png, ü 猫.png, deep/b.png; deep/damaged.png and a name that is not UTF-8."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, value in (("a.png", 0), ("ü 猫.png", 90), ("deep/b.png", 255)):
        Image.new("RGB", (20, 30), (value, value, value)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "deep" / "damaged.png").write_bytes(b"damaged")
    shutil.copy(tmp_path / "photos" / "a.png", tmp_path / "photos" / "caf\udce9\n.png")
    return tmp_path / "photos"


ORDER = ["photos/a.png", "photos/caf\\xe9\n.png", "photos/deep/b.png", "photos/deep/damaged.png", "photos/ü 猫.png"]


def test_json_lines(run, photos, capsys):
    assert main(["predict", "photos", "--checkpoint", str(run), "--json", "--top-k", "3", "--batch-size", "2"]) == 1
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["path"] for line in lines] == ORDER
    assert "not an image" in lines[3].pop("error")
    lines.pop(3)
    assert all(len(line["classes"]) == 3 and line["classes"][0]["name"] in "0123456789" for line in lines)
    assert shown.err.startswith("4 images, 1 of 5 files could not be read, ")
    assert shown.err.endswith("images/s\n")


def test_files_of_both_kinds(run, photos, capsys):
    argv = ["predict", "photos/**/*.png", "--checkpoint", str(run), "--csv", "out.csv", "--json-file", "out.jsonl"]
    assert main([*argv, "--top-k", "2", "--threads", "1"]) == 1
    assert capsys.readouterr().out == ""
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(rows[0]) == ["path", "error", "class1", "probability1", "class2", "probability2"]
    assert [row["path"] for row in rows] == [line["path"] for line in lines]
    assert sorted(row["path"] for row in rows) == sorted(ORDER)
    for row, line in zip(rows, lines, strict=True):
        assert row["error"] == line.get("error", "")
        assert [row["class1"], row["class2"]] == [c["name"] for c in line.get("classes", [{"name": ""}] * 2)]
        assert [float(row[f"probability{n}"] or 0) for n in (1, 2)] == [
            c["probability"] for c in line.get("classes", [{"probability": 0}] * 2)
        ]


def test_lines_for_a_pipe(run, photos, capsys):
    assert main(["predict", "photos", "--checkpoint", str(run), "--top-k", "2"]) == 1
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [name.replace("\n", "\\n") for name in ORDER]
    assert rows[3][1] == "error: not an image, or of a kind that Pillow cannot read"
    assert all(row[2].endswith("%") for number, row in enumerate(rows) if number != 3)


def test_frames_of_videos(run, photos, capsys):
    """Each as the same picture in a file of its own; the frames before a cut, then one row that says so."""
    from tests.data.test_video import write_animation, write_film

    write_animation(photos / "clip.gif", [0, 60, 120, 180, 240])
    cut = write_film(photos / "cut.mp4", movflags="faststart")
    cut.write_bytes(cut.read_bytes()[:-500])
    for number, level in ((0, 0), (2, 120), (4, 240)):
        Image.new("RGB", (32, 24), (level, 0, 255 - level)).save(photos / f"{number}.png")
    chosen = ["--checkpoint", str(run), "--top-k", "3", "--batch-size", "2", "--every", "2"]
    argv = ["predict", "photos/clip.gif", "photos/cut.mp4", *(f"photos/{number}.png" for number in (0, 2, 4)), *chosen]
    assert main([*argv, "--json", "--csv", "out.csv"]) == 1
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    names = [line["path"] for line in lines]
    assert names[:4] == [
        "photos/clip.gif#00000",
        "photos/clip.gif#00002",
        "photos/clip.gif#00004",
        "photos/cut.mp4#00000",
    ]
    frames, stills = lines[:3], lines[-3:]
    assert [(line["video"], line["frame"]) for line in frames] == [("photos/clip.gif", n) for n in (0, 2, 4)]
    assert [line["classes"] for line in frames] == [line["classes"] for line in stills] and "frame" not in stills[0]
    *film, last = lines[3:-3]
    assert [line["frame"] for line in film] == list(range(0, 2 * len(film), 2)) and len(film) >= 3
    assert set(last) == {"path", "error"} and last["path"] == "photos/cut.mp4" and "truncated" in last["error"]
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names
    assert f"{len(lines) - 1} images, 1 of {len(lines)} files could not be read" in shown.err
    # A folder is searched for images: the animation is its first frame, as in training, and the film is none.
    assert main(["predict", "photos", *chosen[:4], "--json"]) == 1
    found = {line["path"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert "photos/cut.mp4" not in found and found["photos/clip.gif"]["classes"] == frames[0]["classes"]


@pytest.mark.parametrize("how", ["-", "--from-file=-", "--from-file=list.txt"])
def test_names_from_a_list(run, photos, capsys, monkeypatch, how):
    names = "photos/deep\nphotos/a.png\n"
    Path("list.txt").write_text(names)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    assert main(["predict", how, "--checkpoint", str(run), "--csv", "-"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == ["photos/deep/b.png", "photos/deep/damaged.png", "photos/a.png"]


def test_another_image_size(run, photos, capsys):
    found = {}
    for size in ("32", "48", "57"):
        argv = ["predict", "photos/ü 猫.png", "--checkpoint", str(run), "--json", "--image-size", size]
        assert main(argv) == 0
        found[size] = capsys.readouterr().out
    assert main(["predict", "photos/ü 猫.png", "--checkpoint", str(run), "--json"]) == 0
    assert capsys.readouterr().out == found["32"], "the trained size"
    assert len(set(found.values())) == 3


def test_a_size_that_the_model_cannot_take(capsys, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    argv = ["predict", str(tmp_path / "a.png"), "--model", "test_vit", "--checkpoint", str(tmp_path / "vit.pth")]
    assert main(argv) == 0
    assert main([*argv, "--image-size", "50"]) == 1
    assert "test_vit cannot take images of 3x50x50" in capsys.readouterr().err


WRONG = [
    ([], "no images named"),
    (["a.png", "--json", "--csv", "-"], "--json and --csv both write to the standard output"),
    (["a.png", "--threads", "0"], "--threads must be at least 1"),
    (["a.png", "--image-size", "-3"], "--image-size must be at least 1"),
    (["a.mp4", "--every", "0"], "--every must be at least 1"),
]


@pytest.mark.parametrize(("argv", "words"), WRONG, ids=[" ".join(argv) or "nothing" for argv, _ in WRONG])
def test_bad_usage(argv, words, capsys):
    assert main(["predict", *argv, "--checkpoint", "run"]) == 2
    assert words in capsys.readouterr().err


def test_nothing_is_written_when_there_is_nothing_to_do(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "out.csv").write_text("precious")
    argv = ["--csv", str(tmp_path / "out.csv")]
    assert main(["predict", str(tmp_path / "empty"), "--checkpoint", str(run), *argv]) == 1
    assert "no images in" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "--checkpoint", str(tmp_path / "none"), *argv]) == 1
    assert main(["predict", "--from-file", str(tmp_path / "none"), "--checkpoint", str(run), *argv]) == 1
    assert "none: No such file or directory" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == "precious"


def test_ctrl_c_leaves_whole_lines(run, photos, capsys, monkeypatch):
    read = vssm.inference.predict.open_image

    def interrupt(path, *options):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return read(path, *options)

    monkeypatch.setattr(vssm.inference.predict, "open_image", interrupt)
    argv = ["predict", "photos", "--checkpoint", str(run), "--batch-size", "1", "--threads", "1"]
    assert main([*argv, "--csv", "out.csv", "--json-file", "out.jsonl"]) == 130
    assert "interrupted" in capsys.readouterr().err
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 3 and len({len(row) for row in rows}) == 1
    assert len(list(map(json.loads, Path("out.jsonl").read_text().splitlines()))) == 2


def test_a_reader_that_went_away_ends_it_quietly(run, photos, capsys, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["predict", "photos", "--checkpoint", str(run)]) == 141
    assert capsys.readouterr().err == ""


class Zeros(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return torch.zeros(len(images), 3)


def test_memory_does_not_grow_with_the_images(monkeypatch):
    """20000 images into every file format: what is held is a batch or two, however many there were."""
    image = Image.new("L", (4, 4))
    monkeypatch.setattr(vssm.inference.predict, "open_image", lambda path, *options: image)
    preprocess = Preprocess((1, 4, 4), (0.0,), (1.0,), "nearest", 1.0)
    names, task = ("ant", "bee", "cat"), TASKS["classification"]
    files = (Path(f"folder/{number:05d}.jpg") for number in range(20_000))
    with Path(os.devnull).open("w") as nowhere:
        writers = [JsonLines(nowhere, task, names), Csv(nowhere, 3), Lines(nowhere, task, names)]
        found = predict(Zeros(), preprocess, names, files, batch_size=64, threads=2)

        def take(count):
            for _ in range(count):
                prediction = next(found)
                for writer in writers:
                    writer.write(prediction)

        take(1000)
        tracemalloc.start()
        take(500)
        early, _ = tracemalloc.get_traced_memory()
        take(6000)  # so many that what happens to be read ahead at either moment does not matter
        late, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        take(12_500)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert next(found, None) is None
    assert late - early < 6000 * 50, "bytes; a path alone takes more"
    assert grown < 12_500 * 0.2, "kilobytes"


@pytest.mark.parametrize("width", [40, 100])
def test_the_table_prints_as_it_goes(width):
    shown = io.StringIO()
    screen = Screen(Console(file=shown, width=width, force_terminal=True, color_system=None), ("cat", "dog"))
    screen.write(Prediction(Path("first.jpg"), (("cat", 0.75), ("dog", 0.25))))
    assert "first.jpg" in shown.getvalue()
    screen.write(Prediction(Path("second.jpg"), (("dog", 0.9), ("cat", 0.1))))
    screen.write(Prediction(Path("line\nbreak" + "x" * 200 + ".jpg"), error="not an image"))
    screen.flush()
    lines = shown.getvalue().splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["image", "class" if width == 100 else "cla…", "prob.", "next"],
        ["first.jpg", "cat", "75.0%", "dog", "25.0%"],
        ["second.jpg", "dog", "90.0%", "cat", "10.0%"],
    ]
    assert screen.table is None, "nothing is kept of what was printed"
    assert all(len(line) <= width for line in lines)
    assert "".join(line[: screen.image_width].strip() for line in lines[3:]) == "line\\nbreak" + "x" * 200 + ".jpg"
    assert " ".join(line[-screen.next_width - 2 :].strip() for line in lines[3:]).strip() == "not an image"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A checkpoint from elsewhere, for 1000 classes."""
    path = tmp_path_factory.mktemp("other") / "vit.pth"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    return path


def test_compare(run, other, photos, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    argv = ["predict", "photos", "--compare", str(run), f"test_vit={other}", "--out", "compared.png"]
    assert main(argv) == 1
    shown = capsys.readouterr()
    assert "the models know different classes: 0 have the same name in both, 10 are only in the first" in shown.out
    assert "0 of 4 images named alike (0.0%)" in shown.out
    assert all(words in shown.out for words in ("digits", "vit.pth", "photos/ü 猫.png", "photos/caf\\xe9\\n.png"))
    assert "photos/deep/damaged.png: not an image" in shown.err
    assert "4 images by two models, 1 of 5 files could not be read" in shown.err
    with Image.open("compared.png") as image:
        assert image.format == "PNG"


def test_compare_a_model_with_itself(run, photos, capsys):
    assert main(["predict", "photos/a.png", "photos/deep/b.png", "--compare", str(run), str(run)]) == 0
    shown = capsys.readouterr().out
    assert shown == "2 of 2 images named alike (100.0%)\n"


COMPARE_WRONG = [
    (["photos", "--compare", "A", "B", "--csv", "x.csv"], 2, "--compare names both models and prints a table"),
    (["a.mp4", "--compare", "A", "B", "--every", "2"], 2, "it does not go with --every"),
    (["photos", "--out", "x.png", "--checkpoint", "A"], 2, "--out x.png is the picture of --compare A B"),
    (["photos", "--compare", "A"], 2, "expected 2 arguments"),
    (
        ["photos", "--compare", "vmamba_tini", "vmamba_tiny"],
        1,
        "unknown model 'vmamba_tini'; nearest: vmamba_tiny",
    ),
    (["photos", "--compare", "runs/none", "vmamba_tiny"], 1, "runs/none does not exist; expected a checkpoint"),
]


@pytest.mark.parametrize(("argv", "code", "words"), COMPARE_WRONG, ids=[words for *_, words in COMPARE_WRONG])
def test_bad_comparisons(photos, capsys, argv, code, words):
    assert main(["predict", *argv]) == code
    assert words in capsys.readouterr().err
    assert not Path("x.png").exists() and not Path("x.csv").exists()


def test_an_official_file_of_vim(tmp_path, capsys):
    official = to_official(timm.create_model("vim_nano").state_dict(), VIM)
    torch.save({"model": official, "epoch": 299}, tmp_path / "official.pth")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    chosen = ["--model", "vim_nano", "--checkpoint"]
    assert main(["predict", str(tmp_path / "red.png"), *chosen, str(tmp_path / "official.pth"), "--json"]) == 0
    before = capsys.readouterr().out
    assert len(json.loads(before)["classes"]) == 5
    assert main(["convert", str(tmp_path / "official.pth"), str(tmp_path / "ours.safetensors")]) == 0
    assert f"{len(official)} tensors" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "red.png"), *chosen, str(tmp_path / "ours.safetensors"), "--json"]) == 0
    assert capsys.readouterr().out == before
