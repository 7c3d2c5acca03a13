import re
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.train.tiny import tiny_settings
from vssm_cli import demo
from vssm_cli.parsing import Stop


@pytest.fixture
def tiny_recipe(tmp_path, monkeypatch):
    """The demo with a recipe of seconds; both of its models are cut down by it."""
    import yaml

    import vssm_cli.settings

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_settings().as_dict()))
    monkeypatch.setattr(vssm_cli.settings, "recipes", lambda: {"digits": recipe})


def test_demo_reports_and_fails_below_its_goal(tiny_recipe, tmp_path, capsys):
    out = tmp_path / "demo"
    with pytest.raises(Stop, match=r"the goal of 98% was missed: vmamba_nano \d+\.\d+%, spatial_mamba_nano") as stop:
        demo.main(["--out", str(out), "--epochs", "1"])
    assert stop.value.exit_code == 1
    shown = capsys.readouterr().out
    assert "vmamba_nano ran" in shown and "ss2d" in shown and "fusion" in shown
    models = [line for line in shown.splitlines() if re.match(r"\W*(vmamba|spatial_mamba)_nano\W.*%", line)]
    assert len(models) == 2
    for line in models:
        accuracy, wrong, size = re.search(r"([\d.]+)%\W+(\d+)\W+([\d.]+) M\W", line).groups()
        assert int(wrong) == round((1 - float(accuracy) / 100) * 360) > 0
        assert float(size) == pytest.approx(0.01, abs=0.011)
    assert f"report that compares the models: {out / 'report.html'}" in shown
    picture = np.asarray(Image.open(out / "demo.png").convert("RGB"))
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert {path.name for path in out.iterdir()} == {"vmamba_nano", "spatial_mamba_nano", "demo.png", "report.html"}


@pytest.mark.parametrize(("accuracy", "passes"), [(0.98, True), (0.9799, False)])
def test_demo_passes_at_its_goal(tiny_recipe, tmp_path, monkeypatch, accuracy, passes):
    import vssm.train.demo

    train = vssm.train.demo.train_digits
    monkeypatch.setattr(
        vssm.train.demo, "train_digits", lambda *arguments: replace(train(*arguments), accuracy=accuracy)
    )
    monkeypatch.setattr(demo, "MODELS", ("vmamba_nano",))
    argv = ["--out", str(tmp_path / "demo"), "--epochs", "1"]
    if passes:
        assert demo.main(argv) == 0
    else:
        with pytest.raises(Stop, match=r"the goal of 98% was missed: vmamba_nano 97\.99%"):
            demo.main(argv)


def test_digits_are_shown_as_scanned():
    from vssm.data.digits import load_digits
    from vssm.tasks.classification.metrics import Answer
    from vssm.train.demo import shown_digit

    _, test = load_digits(augment=False)
    digit = shown_digit(test, Answer(5, int(test.labels[5]), 8, 0.6))
    assert (digit.truth, digit.read, digit.confidence) == (int(test.labels[5]), 8, 0.6)
    assert digit.image.shape == (32, 32)
    assert 0 <= digit.image.min() < 0.1
    assert 0.9 < digit.image.max() <= 1


@pytest.mark.full
def test_demo_reaches_98_percent(tmp_path):
    began = time.perf_counter()
    argv = [sys.executable, "-m", "vssm", "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout, f"{time.perf_counter() - began:.0f} s")
