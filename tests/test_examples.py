"""The scripts of examples/, run as they are, at small sizes."""

import json
import math
import re
import runpy
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import vssm
from vssm.data.photographs import photographs
from vssm.data.preprocess import Preprocess
from vssm.data.shapes import CLASSES, write_shapes
from vssm.export import export
from vssm.hub import describe_run, write_folder
from vssm.nn import SS2D
from vssm.tasks.classification import create_classifier

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / name))["main"]()

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A vmamba_nano that gives class 7 to every picture."""
    model = create_classifier("vmamba_nano")
    with torch.no_grad():
        model.head.fc.bias[7] = 9.0
    path = tmp_path_factory.mktemp("weights") / "nano.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


def test_predict_image(run, weights, tmp_path, capsys):
    Image.new("RGB", (60, 40), (0, 90, 200)).save(tmp_path / "photo.jpg")
    names = run("predict_image.py", tmp_path / "photo.jpg", "--model", "vmamba_nano", "--weights", weights)
    assert len(names) == 5 and names[0].startswith("cock")
    assert "tensors from" in capsys.readouterr().out


def test_class_activation(run, weights, tmp_path, capsys):
    """Three panels of 32 x 32: the picture, Grad-CAM on it, and relevance, whose sum is printed."""
    out = tmp_path / "maps.png"
    panels = run("class_activation.py", "--weights", weights, "--out", out)
    shown = capsys.readouterr().out
    found = re.search(r"cock: logit (.+) = (.+) of pixels \+ (.+) of biases", shown)
    logit, pixels, biases = map(float, found.groups())
    assert logit == pytest.approx(pixels + biases, abs=2e-3) and logit == pytest.approx(9, abs=0.5)
    written = torch.from_numpy(numpy.array(Image.open(out)))
    assert written.shape == (32, 96, 3) and torch.equal(written, torch.from_numpy(panels))
    picture, heat, relevance = written.split(32, 1)
    assert (picture != heat).any() and relevance.float().std() > 10
    Image.new("RGB", (60, 40), (0, 90, 200)).save(tmp_path / "photo.jpg")
    run("class_activation.py", tmp_path / "photo.jpg", "--model", "vim_nano", "--cls", 3, "--out", out)
    assert "tiger shark" in capsys.readouterr().out


def test_fpn_neck(run):
    maps = run("fpn_neck.py", "--model", "vmamba_tiny", "--height", 96, "--width", 128)
    shapes = {name: tuple(x.shape) for name, x in maps.items()}
    assert shapes == {
        "0": (1, 256, 24, 32),
        "1": (1, 256, 12, 16),
        "2": (1, 256, 6, 8),
        "3": (1, 256, 3, 4),
        "pool": (1, 256, 2, 2),
    }


def test_finetune_torch(run, weights, tmp_path):
    for name, colour in (("green", (0, 200, 0)), ("red", (200, 0, 0))):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (40, 36), tuple(c + 10 * number for c in colour)).save(tmp_path / name / f"{number}.png")
    small = ("--model", "vmamba_nano", "--weights", weights, "--epochs", 6, "--batch-size", 4, "--lr", 1e-3)
    losses = run("finetune_torch.py", tmp_path, *small)
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]


# What timm's train.py does with a model, in short: it is not part of the installed timm.
SCRIPT = """
import sys, timm, torch
from helper import steps
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

assert __name__ == "__main__" and sys.argv[1] == "--model"
model = timm.create_model(sys.argv[2], num_classes=10, drop_path_rate=0.1)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
criterion = SoftTargetCrossEntropy()
ema = ModelEmaV3(model, decay=0.5)
images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
for step in range(steps):
    mixed, targets = mixup(images.clone(), labels)
    loss = criterion(model(mixed), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update(model, step)
    print(loss.item())
"""


def test_timm_training(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("steps = 3")
    monkeypatch.setattr(sys, "path", [*sys.path])
    run("timm_training.py", tmp_path / "train.py", "--model", "vmamba_nano")
    losses = [float(line) for line in capsys.readouterr().out.split()]
    # Ten classes at random: ln 10 = 2.30, and a little less after two steps on the same images.
    assert len(losses) == 3 and losses[0] == pytest.approx(math.log(10), abs=0.1) and losses[2] < losses[0]
    with pytest.raises(SystemExit, match="usage: python examples"):
        run("timm_training.py", tmp_path / "nothing.py")


@pytest.mark.parametrize("scan", ["cross", "bidirectional"])
def test_swap_mixer(run, scan, capsys):
    network = run("swap_mixer.py", "--scan", scan)
    assert sum(isinstance(module, SS2D) for module in network.modules()) == 2
    assert "(2, 32, 15, 21)" in capsys.readouterr().out


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Images of 64 x 64 with boxes, masks of the objects, and maps of the six classes."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=16, val=4, size=(64, 64))
    return root


def test_smp_unet(run, shapes, weights, capsys):
    small = ("--model", "vmamba_nano", "--weights", weights, "--size", 64, "--epochs", 4, "--lr", 5e-3)
    losses, miou = run("smp_unet.py", shapes, *small)
    assert len(losses) == 8 and losses[0] == pytest.approx(math.log(6), abs=0.6)
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2]) and 0.08 < miou < 1
    shown = capsys.readouterr().out
    assert "124 tensors from" in shown and f"mIoU on the middles of 4 images: {miou:.3f}" in shown


def test_mask2former(run, shapes, weights, capsys):
    config = {"num_queries": 8, "encoder_layers": 1, "decoder_layers": 2, "train_num_points": 128}
    small = ("--model", "vmamba_nano", "--weights", weights, "--size", 64, "--width", 32)
    small = (*small, "--config", json.dumps(config))
    losses, _ = run("mask2former.py", shapes, *small, "--steps", 10, "--lr", 2e-3)
    assert len(losses) == 10 and losses[-1] < 0.9 * losses[0]
    assert "124 tensors from" in capsys.readouterr().out
    # Every query is an object of some score; random ones fill parts of the image.
    losses, masks = run("mask2former.py", shapes, *small, "--steps", 0, "--threshold", 0)
    assert losses == [] and masks.shape == (8, 64, 64) and set(masks.unique().tolist()) == {0, 1}
    lines = capsys.readouterr().out.splitlines()[-8:]
    assert [line.split(", ")[1] for line in lines] == [f"{int(mask.sum())} pixels" for mask in masks]
    assert all(line.split()[0] in CLASSES for line in lines)


def test_transformers_models(run, tmp_path):
    """What transformers finds and sees is what the run's own model does."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    stored = EXAMPLES.parent / "tests" / "data" / "run_of_0.1"
    card = describe_run(stored / "run", "owner/squares", license="mit", dataset="coloured squares")
    folder, image = write_folder(stored / "run", tmp_path / "folder", card), stored / "images/val/green/1.png"
    found, maps, loss = run("transformers_models.py", folder, image, "--classes", 4)
    predictor = vssm.load(stored / "run")
    (expected,) = predictor.predict(image)
    assert found == pytest.approx(dict(expected.classes), abs=1e-5)
    pixels = predictor.preprocess(image)[None]
    plain = predictor.model.forward_intermediates(pixels, intermediates_only=True)
    assert len(maps) == len(plain) == 2
    for own, theirs in zip(plain, maps, strict=True):
        torch.testing.assert_close(theirs, own)
    assert loss == pytest.approx(math.log(4), abs=0.5)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text(encoding="utf-8")
    assert f"python examples/{path.name}" in text
    assert len(text.splitlines()) <= 90


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network, its file, and its preprocessing."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    ).eval()
    preprocess = Preprocess((3, 32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bilinear", 0.9)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(model, preprocess, path, classes=("cat", "dog", "bird"))
    return model, path, preprocess


def _expected(exported, file):
    model, _, preprocess = exported
    with torch.no_grad():
        probabilities = model(preprocess(file)[None]).softmax(-1)[0]
    return ("cat", "dog", "bird")[probabilities.argmax()], float(probabilities.max())


def test_onnx_predict(run, exported, capsys):
    """The same as this package's own preprocessing and network give."""
    for file in photographs(2):
        best = run("onnx_predict.py", exported[1], file)
        assert len(best) == 3 and sum(share for _, share in best) == pytest.approx(1)
        name, probability = _expected(exported, file)
        assert best[0][0] == name and best[0][1] == pytest.approx(probability, abs=1e-5)
    assert "%  cat" in capsys.readouterr().out


def test_onnx_folder(run, exported, tmp_path, capsys):
    for number, file in enumerate(photographs(3)):
        Image.open(file).convert("RGB").save(tmp_path / f"{number}.png")
    (tmp_path / "3.jpg").write_text("no image")
    assert run("onnx_folder.py", exported[1], tmp_path, "--batch-size", 2) == 3
    shown = capsys.readouterr()
    header, *rows = [line.split(",") for line in shown.out.split()]
    assert header == ["file", "class", "probability"] and "3.jpg" in shown.err
    for file, name, probability in rows:
        expected = _expected(exported, file)
        assert name == expected[0] and float(probability) == pytest.approx(expected[1], abs=1e-4)
    assert [Path(row[0]).name for row in rows] == ["0.png", "1.png", "2.png"]
