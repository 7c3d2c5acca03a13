"""The road through the commands: fit, resume, validate, predict, on digits and on a folder of images."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vssm.inference.run_dir import RunDir
from vssm.train.callbacks import read_metrics
from vssm_cli.command import main

TINY = (
    "--model.args={dims: [8, 16], depths: [1, 1]}",
    "--accelerator=cpu",
    "--trainer.limit-train-batches=3",
    "--trainer.limit-val-batches=2",
    "--batch-size=16",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["fit", "--config", "digits", "--out", str(path), "--epochs", "2", *TINY]) == 0
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes that differ in colour, three images each, the last of other size and mode."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for channel, name in enumerate(("red", "green")):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
            Image.fromarray(pixels[:20, :, 0]).save(root / split / name / "grey.jpg")
    return root


def test_fit_leaves_a_run_directory(run):
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    written = {".lock", "config.yaml", "environment.yaml", "metrics.csv", "report.html", "curves.png"}
    assert files == written | {f"checkpoints/{name}.ckpt" for name in ("last", "step-3", "best")}
    config = RunDir(run).read_config()
    assert config["model"]["name"] == "vmamba_nano"
    assert config["trainer"]["max_epochs"] == 2
    assert (config["optim"]["lr"], config["optim"]["ema_decay"], config["data"]["batch_size"]) == (3e-3, 0.98, 16)


def test_directory_in_use(run, capsys):
    assert main(["fit", "--config", "digits", "--out", str(run)]) == 1
    assert f"already in use (it is not empty); continue it with --resume {run}" in capsys.readouterr().err


def test_resume_of_a_finished_run(run, capsys):
    before = RunDir(run).metrics.read_text()
    assert main(["fit", "--resume", str(run)]) == 0
    assert "already complete" in capsys.readouterr().out
    assert RunDir(run).metrics.read_text() == before


def test_a_run_shorter_than_an_epoch_is_reported(tmp_path, capsys):
    out = tmp_path / "short"
    assert main(["fit", "--config", "digits", "--out", str(out), *TINY, "--trainer.max-steps", "1"]) == 0
    shown = capsys.readouterr().out
    assert "already complete" not in shown and "report.html" in shown
    assert "There is no best.ckpt" in (out / "report.html").read_text(encoding="utf-8")


def test_validate_repeats_the_logged_metrics(run, capsys):
    argv = ["validate", "--checkpoint", str(run / "checkpoints" / "last.ckpt")]
    assert main([*argv, "--trainer.limit-val-batches", "2"]) == 0
    logged = [row for row in read_metrics(RunDir(run).metrics) if row["val_top1"]][-1]
    shown = capsys.readouterr().out
    assert f"{float(logged['val_top1']):.2%}" in shown
    assert f"{float(logged['val_loss']):.4f}" in shown
    assert main([*argv, "--json"]) == 0  # all images, although the training evaluated two batches
    assert json.loads(capsys.readouterr().out)["images"] == 360


def test_an_evaluation_is_on_one_device(run, capsys):
    argv = ["validate", "--checkpoint", str(run), "--trainer.limit-val-batches", "1", "--json"]
    assert main([*argv, "--devices", "2"]) == 2
    assert "vssm validate evaluates on one device; leave out --devices 2" in capsys.readouterr().err
    assert main([*argv, "--precision", "64-mixed"]) == 1
    assert "trainer.precision is 64-mixed; expected 32-true" in capsys.readouterr().err
    assert main([*argv, "--devices", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 16


def test_predict(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name, value in (("a", 0), ("b", 255)):
        Image.new("RGB", (20, 30), (value, value, value)).save(tmp_path / f"{name}.png")
    assert main(["predict", str(tmp_path), "--checkpoint", str(run), "--json", "--top-k", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert all(len(line["classes"]) == 3 and line["classes"][0]["name"] in "0123456789" for line in lines)
    (tmp_path / "c.png").write_bytes(b"damaged")
    assert main(["predict", str(tmp_path), "--checkpoint", str(run)]) == 1
    shown = capsys.readouterr()
    assert all(name in shown.out for name in ("a.png", "b.png", "not an image"))
    assert "1 of 3 files could not be read" in shown.err


def test_imagefolder_with_any_timm_model(images, tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["fit", "--model", "test_convnext", "--data.root", str(images), "--out", str(out), "--epochs", "1"]
    assert main([*argv, "--image-size", "32", "--batch-size", "4", "--accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "8 to train, 8 to validate, 2 classes, 3x32x32" in shown
    stored = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["vssm"]
    assert stored["classes"] == ["green", "red"]
    assert stored["preprocess"]["input_size"] == [3, 32, 32]
    assert main(["predict", str(images / "val" / "red" / "0.png"), "--checkpoint", str(out), "--json"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert {c["name"] for c in line["classes"]} == {"red", "green"}
    assert main(["validate", "--checkpoint", str(out), "--data.root", str(images)]) == 0


def test_a_folder_without_val(images, tmp_path, capsys):
    """Training holds images out, `validate` finds the same ones again, `test` takes those in test/."""
    root, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images / "train", root / "train")
    shutil.copytree(images / "val", root / "test")
    argv = ["fit", "--model", "test_convnext", "--data.root", str(root), "--out", str(out), "--epochs", "1"]
    assert main([*argv, "--image-size=32", "--batch-size=3", "--accelerator=cpu", "--data.val-share=0.4"]) == 0
    assert "note: no folder val in" in capsys.readouterr().out
    (logged,) = [row for row in read_metrics(RunDir(out).metrics) if row["val_top1"]]
    assert main(["validate", "--checkpoint", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("checkpoint") == str(RunDir(out).best)
    assert found.pop("split") == "val"
    assert 2 <= found.pop("images") <= 6
    assert found.pop("unreadable") == 0
    assert found == pytest.approx({"loss": float(logged["val_loss"]), "top1": float(logged["val_top1"])}, abs=1e-6)
    assert main(["test", "--checkpoint", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], found["images"]) == ("test", 8)
    assert main(["test", "--checkpoint", str(out)]) == 0
    assert "images" in capsys.readouterr().out


ABSENT = "tpu" if torch.accelerator.is_available() else "gpu"


def fit_in(root, *more):
    return ["fit", "--model", "test_convnext", "--data.root", str(root), "--out", str(root.parent / "out"), *more]


CASES = {
    "unknown model": (
        lambda p, run: ["fit", "--data", "digits", "--model", "vmamba_tini", "--out", str(p / "out")],
        "unknown model 'vmamba_tini'; nearest: vmamba_tiny",
    ),
    "missing root": (lambda p, run: fit_in(p / "none"), "none does not exist; expected a folder with train/CLASS"),
    "file as root": (lambda p, run: fit_in(p / "file"), "file is a file; expected a folder"),
    "no class folders": (lambda p, run: fit_in(p), "has no class folders; expected"),
    "out is a file": (
        lambda p, run: ["fit", "--config", "digits", "--out", str(p / "file")],
        "file is a file; expected a run directory",
    ),
    "resume of nothing": (lambda p, run: ["fit", "--resume", str(p)], "has no config.yaml: there is nothing to resume"),
    "batch of none": (
        lambda p, run: ["fit", "--data", "digits", "--batch-size", "0", "--out", str(p / "out")],
        "data.batch_size is 0; it must be in [1, inf)",
    ),
    "too small an image": (
        lambda p, run: [
            "fit",
            "--config",
            "digits",
            "--model",
            "resnet10t",
            "--image-size",
            "0",
            "--out",
            str(p / "o"),
        ],
        "image_size is 0",
    ),
    "another size than the model's": (
        lambda p, run: [
            "fit",
            "--config",
            "digits",
            "--model",
            "test_vit",
            "--image-size",
            "36",
            "--out",
            str(p / "o"),
        ],
        "test_vit cannot take images of 1x36x36",
    ),
    "no such accelerator": (
        lambda p, run: ["fit", "--config", "digits", "--accelerator", ABSENT, "--out", str(p / "o")],
        f"trainer.accelerator is {ABSENT}" if ABSENT == "gpu" else "xla",
    ),
    "unknown precision": (
        lambda p, run: ["fit", "--config", "digits", "--precision", "bf17", "--out", str(p / "o")],
        "bf17",
    ),
    "init from nothing": (
        lambda p, run: ["fit", "--config", "digits", "--init-from", str(p / "no.pth"), "--out", str(p / "out")],
        "no.pth does not exist",
    ),
    "init from html": (
        lambda p, run: ["fit", "--config", "digits", "--init-from", str(p / "file"), "--out", str(p / "out")],
        "file",
    ),
    "missing checkpoint": (
        lambda p, run: ["predict", str(p), "--checkpoint", str(p / "no.ckpt")],
        "no.ckpt does not exist; expected a checkpoint or a run directory",
    ),
    "folder without checkpoint": (lambda p, run: ["predict", str(p), "--checkpoint", str(p)], "is a folder without"),
    "html as checkpoint": (
        lambda p, run: ["predict", str(p), "--checkpoint", str(p / "file")],
        "file is a web page, not weights",
    ),
    "html to validate": (
        lambda p, run: ["validate", "--checkpoint", str(p / "file")],
        "file is a web page, not weights",
    ),
    "wrong model": (
        lambda p, run: ["predict", str(p), "--checkpoint", str(run), "--model", "resnet18"],
        "holds a vmamba_nano, not a resnet18",
    ),
    "no images": (lambda p, run: ["predict", str(p), "--checkpoint", str(run)], "no images in"),
    "no such device": (
        lambda p, run: ["predict", str(p), "--checkpoint", str(run), "--device", "gpuu"],
        "device 'gpuu' is not available here; available: cpu",
    ),
    "unknown pattern": (lambda p, run: ["models", "vmamba_tini"], "nearest: vmamba_tiny"),
    "unknown model to count": (lambda p, run: ["complexity", "vmamba_tini"], "nearest: vmamba_tiny"),
    "missing file to convert": (lambda p, run: ["convert", str(p / "no.pth"), str(p / "o.safetensors")], "no.pth"),
    "demo folder in use": (lambda p, run: ["demo", "--out", str(p)], "is already in use; choose another --out"),
    "validate without images": (
        lambda p, run: ["validate", "--checkpoint", str(run), "--data.root", str(p)],
        "has no class folders",
    ),
    "test without a test folder": (
        lambda p, run: ["test", "--checkpoint", str(run), "--data.root", str(p)],
        "has no folder test; expected test/CLASS/IMAGE",
    ),
    "test of the digits": (lambda p, run: ["test", "--checkpoint", str(run)], "have no test images beside those"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_message(case, run, tmp_path, capsys):
    (tmp_path / "file").write_text("<!DOCTYPE html><html>not found</html>")
    make_argv, words = CASES[case]
    assert main(make_argv(tmp_path, run)) == 1
    error = capsys.readouterr().err
    assert error.startswith("vssm: error: ")
    assert words in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "something half-written was left behind"


def test_bad_class_folders(images, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(images, root)
    (root / "val" / "blue").mkdir()
    assert main(fit_in(root)) == 1
    assert "val has blue, which the training classes do not include" in capsys.readouterr().err
    (root / "train" / "blue").mkdir()
    assert main(fit_in(root)) == 1
    assert "blue holds no images" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A run of one epoch of two on a copy of the images: the folder of both, and a copy of it."""
    folder, kept = tmp_path_factory.mktemp("stopped") / "of", tmp_path_factory.mktemp("stopped") / "kept"
    shutil.copytree(images, folder / "images")
    argv = ["fit", "--model", "test_resnet", "--data.root", str(folder / "images"), "--out", str(folder / "run")]
    more = ["--image-size=32", "--batch-size=4", "--accelerator=cpu", "--epochs=2", "--trainer.max-steps=2"]
    assert main([*argv, *more]) == 0
    shutil.copytree(folder, kept)
    return folder, kept


@pytest.fixture
def stopped(trained, capsys):
    """The run and its images as the training left them."""
    folder, kept = trained
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    capsys.readouterr()
    return folder / "run", folder / "images"


def error_of_resume(run, capsys):
    assert main(["fit", "--resume", str(run)]) == 1
    return capsys.readouterr().err


def test_resume_refuses_other_images(stopped, capsys):
    run, root = stopped
    (root / "val" / "red" / "0.png").rename(root / "val" / "red" / "00.png")
    words = "was trained with as many val images, but of other names (some were renamed or replaced since)"
    assert words in error_of_resume(run, capsys)
    (root / "train" / "red" / "0.png").rename(root / "train" / "green" / "new.png")
    words = "was trained with 4 train images of green, there are now 5; put them back as they were"
    assert words in error_of_resume(run, capsys)
    for split in ("train", "val"):
        (root / split / "red").rename(root / split / "rouge")
    assert "2 classes, the images are now of 2 (red, rouge on one side only)" in error_of_resume(run, capsys)


def test_resume_refuses_another_model(stopped, capsys):
    run, _ = stopped
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("name: test_resnet", "name: test_convnext"))
    assert "does not fit the model; nothing was loaded" in error_of_resume(run, capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("\nseed: 0", "\nsed: 0"), "config.yaml: unknown setting sed; nearest: seed"),
        (("  lr: ", "  lrr: "), "config.yaml: unknown setting optim.lrr; nearest: optim.lr"),
        (("batch_size: 4", "batch_size: four"), "config.yaml: --data.batch_size: expected int, not 'four'"),
    ],
)
def test_a_config_of_another_version_is_named(stopped, capsys, change, words):
    run, _ = stopped
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(*change))
    error = error_of_resume(run, capsys)
    assert words in error
    assert "The run was written by vssm 0." in error and "resume with that version, or start a new run" in error


def change_checkpoint(file, change):
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["vssm"].update(format=9, version="7.1"), "format 9, expected 1; it was written by vssm 7.1"),
        (lambda c: c["vssm"].pop("classes"), "lacks 'classes'; it was written by vssm 0."),
        (lambda c: c["vssm"]["settings"]["model"].update(fancy=1), "has model.fancy, which this version of vssm"),
        (lambda c: c["vssm"]["settings"].update(optim=None), "has optim: None; expected names"),
        (lambda c: c["state_dict"].pop("task.model.fc.bias"), "missing, 1: fc.bias"),
    ],
)
def test_a_checkpoint_of_another_version_is_named(stopped, capsys, change, words):
    run, _ = stopped
    for file in (RunDir(run).last, RunDir(run).best):
        change_checkpoint(file, change)
    for argv in (["validate", "--checkpoint", str(run)], ["fit", "--resume", str(run)]):
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert words in error and ".ckpt" in error


def test_a_run_in_use_is_refused(stopped, capsys):
    run, _ = stopped
    used = RunDir.reopen(run)
    assert "is in use by another process" in error_of_resume(run, capsys)
    used.close()


def test_divergence_ends_with_one_message(images, tmp_path, capsys):
    argv = ["fit", "--model", "test_resnet", "--data.root", str(images), "--out", str(tmp_path / "run"), "--lr", "1e30"]
    argv += ["--optim.max-skipped-steps=2"]
    more = ["--optim.warmup-epochs=0", "--trainer.gradient-clip-val=null", "--optim.ema-decay=0", "--accelerator=cpu"]
    assert main([*argv, *more, "--image-size=32", "--batch-size=4", "--epochs=5"]) == 1
    error = capsys.readouterr().err
    assert "became nan in epoch" in error or "became inf in epoch" in error or "became NaN or infinite" in error
    assert error.count("\n") == 1


def test_information(capsys):
    assert main(["models", "vmamba_tiny"]) == 0
    assert "30.25 M" in capsys.readouterr().out
    assert main(["complexity", "vmamba_nano"]) == 0
    assert "multiply-adds" in capsys.readouterr().out
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "C++ core" in shown and "ss2d" in shown and "torch" in shown
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] == "classification/vmamba_tiny" for line in listed)
    assert any(line.split()[0] == "digits" for line in listed)
