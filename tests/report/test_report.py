"""From run directories to pages, by the command."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.report.html_check import check
from tests.train.tiny import tiny_settings
from vssm.analysis.complexity import complexity
from vssm.data.batches import Batch
from vssm.data.digits import load_digits
from vssm.inference.run_dir import RunDir
from vssm.report.comparison import comparison_page
from vssm.report.gather import evaluate_run, open_run
from vssm.report.page import run_page
from vssm.report.words import percent
from vssm.report.write import write_report
from vssm.settings import Settings
from vssm.tasks.classification.metrics import ClassificationMetrics
from vssm.train.fit import build, fit, start_run
from vssm_cli.command import main

NAMES = ("<b>bold<b> & 'co'", 'a"quote', "Ünïcode 漢字")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    settings = tiny_settings(out=str(tmp_path_factory.mktemp("runs") / "digits"))
    run = start_run(settings)
    fit(build(settings), run)
    run.close()
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on images of three classes with names that HTML would take for something else."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in NAMES:
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    settings = Settings.from_dict(tiny_settings().as_dict())
    settings.data.name, settings.data.root, settings.data.image_size = "imagefolder", str(root), 32
    settings.trainer.max_epochs, settings.out = 1, str(tmp_path_factory.mktemp("runs") / "<folder>")
    run = start_run(settings)
    fit(build(settings), run)
    run.close()
    return run


@pytest.fixture
def copy(digits, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(digits.path, path)
    return RunDir(path)


def last_top1(run):
    return [float(y) for _, y in open_run(run.path).history.points("val_top1")]


def test_one_run(digits, capsys):
    assert main(["report", str(digits.path), "--device", "cpu"]) == 0
    assert f"report: {digits.report}" in capsys.readouterr().out
    text = check(digits.report.read_text(encoding="utf-8"))
    # 3 batches of 16 were evaluated while training; the best of the logged accuracies is that of best.ckpt.
    assert f"{max(last_top1(digits)) * 100:.2f}\N{NO-BREAK SPACE}%" in text
    assert "first 48 of 360 validation images" in text
    environment = digits.read_environment()
    for words in ("vmamba_nano", "seed 0", "digits", environment["hardware"], environment["versions"], "best.ckpt"):
        assert words in text
    for title in ("Learning curves", "Calibration", "Classes", "Confusions", "Mistakes"):
        assert title in text


def test_pictures_are_the_misclassified_images(digits):
    import base64
    import io

    from vssm.data.digits import MEAN, STD

    report = evaluate_run(open_run(digits.path))
    picture = report.pictures[0]
    _, test = load_digits(augment=False)
    assert int(test.labels[picture.mistake.index]) == picture.mistake.truth != picture.mistake.read
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))))
    expected = (test.images[picture.mistake.index][0] * STD[0] + MEAN[0]).clamp(0, 1).numpy() * 255
    assert np.abs(shown - expected).max() <= 0.51
    model = open_run(digits.path).stored.create_model()
    with torch.inference_mode():
        probabilities = model(test.images[picture.mistake.index][None]).softmax(-1)[0]
    assert float(probabilities[picture.mistake.read]) == pytest.approx(picture.mistake.confidence, abs=1e-5)


def test_names_are_escaped_and_runs_of_different_classes_compared(digits, folder, tmp_path, capsys):
    out = tmp_path / "both.html"
    assert main(["report", str(digits.path), str(folder.path), "--out", str(out), "--device", "cpu"]) == 0
    written = out.read_text(encoding="utf-8")
    text = check(written)
    assert all(name in text for name in NAMES)
    assert "<b>bold" not in written and "<folder>" not in written
    assert "<folder> and digits have different classes (3 and 10): only <folder> has" in text
    assert "2 runs of different classes" in text
    assert "Top-1 on the validation images" not in text and "is bold" not in text
    (top1,) = (f"{evaluate_run(open_run(folder.path)).quality.top1 * 100:.2f}\N{NO-BREAK SPACE}%",)
    assert top1 in text


def allow(run, share):
    """As if the run had been trained with this data.max_unreadable."""
    for path in (run.best, run.last):
        content = torch.load(path, weights_only=True)
        content["vssm"]["settings"]["data"]["max_unreadable"] = share
        torch.save(content, path)


def test_unreadable_images_are_left_out_and_named(folder, tmp_path):
    root, run = tmp_path / "images", RunDir(tmp_path / "run")
    shutil.copytree(open_run(folder.path).stored.settings.data.root, root)
    shutil.copytree(folder.path, run.path)
    whole = evaluate_run(open_run(run.path), data_root=str(root))
    damaged = sorted((root / "val").rglob("*.png"))[0]
    damaged.write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 9 validation images cannot be read, more than .* 0\.001 allows"):
        evaluate_run(open_run(run.path), data_root=str(root))
    allow(run, 0.5)
    run.unreadable.write_text("path,reason\r\ntrain/3.png,<cut off>\r\n", encoding="utf-8")
    report = evaluate_run(open_run(run.path), data_root=str(root))
    # The first image is left out; the others keep their numbers and their answers.
    assert report.quality.images == 8
    others = [m for m in whole.quality.mistakes if m.index != 0]
    assert [(m.index, m.truth, m.read) for m in report.quality.mistakes] == [(m.index, m.truth, m.read) for m in others]
    assert report.unreadable == (("train/3.png", "<cut off>"), (str(damaged), "empty file"))
    text = check(run_page(report))
    assert "1 of 9 validation images could not be read and are left out of the figures" in text
    assert "2 images could not be read" in text and "<cut off>" in text
    for file in (root / "val").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"9 of 9 validation images cannot be read, more than .*png: not an im"):
        evaluate_run(open_run(run.path), data_root=str(root))


def test_two_runs_overlaid(digits, copy):
    reports = [evaluate_run(open_run(run.path)) for run in (digits, copy)]
    written = comparison_page(reports)
    check(written)
    (curves,) = [part for part in written.split("<section>") if "Top-1 on the validation images" in part]
    assert 'class="line c0"' in curves and 'class="line c1"' in curves
    assert "different" not in written
    assert "The best value of a column is bold" in written and f"<b>{percent(reports[0].quality.top1)}</b>" in written


def test_runs_on_other_images_are_not_ranked(digits):
    report = evaluate_run(open_run(digits.path))
    written = comparison_page([report, replace(report, name="other", images_id="other")])
    assert "other and digits were evaluated on different images" in check(written)
    results = written.partition("Learning curves")[0]
    assert "<b>" not in results and "is bold" not in results


def test_a_cut_metrics_file_and_nan(copy, capsys):
    whole = copy.metrics.read_bytes()
    lines = whole.splitlines(keepends=True)
    cells = lines[3].split(b",")
    cells[3] = b"nan"
    copy.metrics.write_bytes(b"".join([*lines[:3], b",".join(cells), *lines[4:]])[:-4])
    assert main(["report", str(copy.path), "--device", "cpu"]) == 0
    text = check(copy.report.read_text(encoding="utf-8"))
    for shown in (text, capsys.readouterr().out):
        assert "metrics.csv: 1 line cut off or damaged" in shown
        assert "The training loss became NaN or infinite at step 3" in shown


def test_a_run_that_ended_early(copy):
    rows = copy.metrics.read_text().splitlines(keepends=True)
    copy.metrics.write_text("".join(rows[:1] + [row for row in rows[1:] if row.startswith("1,")]))
    text = check(run_page(evaluate_run(open_run(copy.path))))
    assert "Training reached epoch 1 of 3" in text and "1 of 3 epochs, 4 steps of 16 images" in text
    copy.metrics.write_text(rows[0])  # ended before the first row
    text = check(run_page(evaluate_run(open_run(copy.path))))
    assert "metrics.csv holds no finite value to draw" in text and "0 of 3 epochs, 0 steps" in text


def test_without_best_the_last_checkpoint_is_evaluated(copy):
    copy.best.unlink()
    (report,) = write_report([copy.path], copy.report)
    assert report.checkpoint == "last.ckpt"
    assert report.quality.top1 == pytest.approx(last_top1(copy)[-1])
    assert "There is no best.ckpt" in check(copy.report.read_text(encoding="utf-8"))


def answered(digits, read, truth, number):
    """The digits' report with other answers: image i of class truth[i] is read as read[i]."""
    metrics = ClassificationMetrics(number, details=24)
    metrics.update(torch.nn.functional.one_hot(read, number) * 9.0, Batch(None, truth))
    classes = tuple(f"class {k}" for k in range(number))
    report = evaluate_run(open_run(digits.path))
    return replace(report, classes=classes, quality=metrics.compute(), pictures=(), trained_on=None)


def test_a_thousand_classes(digits):
    truth = torch.arange(1000).repeat(10)
    read = truth.clone()
    read[:500] = torch.arange(500).roll(1)
    read[7] = 9
    written = run_page(answered(digits, read, truth, 1000))
    text = check(written)
    assert "The 100 of 1000 classes that are confused most" in text
    assert "class 7, predicted class 9: 1 of 10 (10.0%)" in written
    assert "The other 975 classes" in text
    assert len(written) < 1_000_000


def test_two_classes_and_no_mistake(digits):
    truth = torch.tensor([0, 1] * 4)
    text = check(run_page(answered(digits, truth, truth, 2)))
    assert text.count("No image was misclassified.") == 1
    assert "100.00\N{NO-BREAK SPACE}%" in text
    # Eight images cannot tell 100 % from 70 %: Wilson's interval.
    assert "top-1 of 8 validation images; 95 % interval 67.6 to 100.0\N{NO-BREAK SPACE}%" in text
    assert "top-5" not in text.partition("Learning curves")[0]
    assert "2 classes are evaluated on fewer than 10 images" in text and "4*" in text


def test_model_and_images_are_counted(digits, folder):
    report = evaluate_run(open_run(digits.path))
    assert report.multiply_adds == complexity(open_run(digits.path).stored.create_model(), (1, 32, 32)).macs
    assert report.trained_on == tuple(np.bincount(load_digits()[0].labels).tolist())
    assert evaluate_run(open_run(folder.path)).trained_on == (3, 3, 3)
    assert f"{report.multiply_adds / 1e6:.2f}\N{NO-BREAK SPACE}M multiply-adds" in check(run_page(report))


def test_a_moved_folder_without_training_images(folder, tmp_path):
    root = tmp_path / "elsewhere"
    shutil.copytree(open_run(folder.path).stored.settings.data.root, root)
    here, there = (evaluate_run(open_run(folder.path), data_root=where) for where in (None, str(root)))
    assert here.images_id == there.images_id
    shutil.rmtree(root / "train" / NAMES[0])
    assert evaluate_run(open_run(folder.path), data_root=str(root)).trained_on is None
    (root / "val" / NAMES[0] / "0.png").unlink()
    assert evaluate_run(open_run(folder.path), data_root=str(root)).images_id != here.images_id


def test_fit_reports_a_report_that_could_not_be_written(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vssm.report.write.write_report", full)
    out = tmp_path / "run"
    argv = ["fit", "--config", "digits", "--out", str(out), "--epochs", "1", "--accelerator", "cpu"]
    tiny = ["--model.args={dims: [8, 16], depths: [1, 1]}", "--trainer.limit-train-batches=2"]
    assert main([*argv, *tiny, "--trainer.limit-val-batches=1"]) == 0
    shown = capsys.readouterr().out
    assert "No space left on device; try again with: vssm report" in shown
    assert not (out / "report.html").exists()
    assert (out / "checkpoints" / "best.ckpt").exists()


def remove(*names):
    def change(run):
        for name in names:
            (run.path / name).unlink()

    return change


def no_finite_weights(run):
    for file in (run.best, run.last):
        content = torch.load(file, weights_only=True)
        content["state_dict"] = {n: v * float("nan") for n, v in content["state_dict"].items()}
        torch.save(content, file)


def moved_images(run):
    content = torch.load(run.best, weights_only=True)
    content["vssm"]["settings"]["data"].update(name="imagefolder", root="/nowhere/images")
    torch.save(content, run.best)


BAD = {
    "no config": (remove("config.yaml"), "copy is not a run directory: it has no config.yaml"),
    "no metrics": (remove("metrics.csv"), "metrics.csv does not exist; `vssm fit` writes it"),
    "no checkpoint": (remove("checkpoints/best.ckpt", "checkpoints/last.ckpt"), "is a folder without checkpoints"),
    "no table": (lambda run: run.metrics.write_text("<html>"), "metrics.csv is not a metrics.csv of `vssm fit`"),
    "no folder": (lambda run: shutil.rmtree(run.path), "copy does not exist; expected the run directory"),
    "NaN weights": (no_finite_weights, "The training that wrote it diverged, or the file is damaged"),
    "images gone": (moved_images, "/nowhere/images does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_runs_are_one_message(case, copy, capsys):
    change, words = BAD[case]
    change(copy)
    before = copy.path.exists() and sorted(copy.path.iterdir())
    assert main(["report", str(copy.path), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vssm: error: ") and error.count("\n") == 1
    assert words in error
    assert (copy.path.exists() and sorted(copy.path.iterdir())) == before, "something half-written was left behind"


def test_bad_targets(digits, tmp_path, capsys):
    for out, words in ((tmp_path, "is a folder; --out takes the file"), (tmp_path / "no" / "r.html", "does not exist")):
        assert main(["report", str(digits.path), "--out", str(out)]) == 1
        assert words in capsys.readouterr().err
    assert main(["report", str(digits.path), str(digits.path)]) == 2
    assert "named twice" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path / "file")]) == 1
    assert "file is a file; expected a run directory" in capsys.readouterr().err


def test_environment_is_written(digits):
    found = yaml.safe_load((digits.path / "environment.yaml").read_text(encoding="utf-8"))
    assert f"torch {torch.__version__.split('+')[0]}" in found["versions"]
    assert set(found) - {"git"} == {"started", "hardware", "versions"}
