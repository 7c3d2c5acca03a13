"""benchmarks/shifted_digits.py: its data, its arms, and that a finished cell is not run again."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from vssm.nn import SS2D, AdaptorS, AdaptorT, StateFusion

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "shifted_digits.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("shifted_digits", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shifted_digits"] = module
    spec.loader.exec_module(module)
    return module


def test_training_and_test_digits_are_different_ones(script):
    (train, train_labels), (test, test_labels) = script.digits()
    assert (len(train), len(test)) == (1437, 360)
    seen = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in seen for image in test)
    assert train_labels.bincount().min() > 130 and test_labels.bincount().min() > 30


def test_digits_are_pasted_whole_and_without_noise(script):
    images = script.digits()[0][0][:200]
    pasted = script.paste(images, torch.Generator().manual_seed(0)).squeeze(1) * script.DEVIATION + script.MEAN
    assert pasted.shape == (200, script.CANVAS, script.CANVAS)
    places = set()
    for page, image in zip(pasted, images, strict=True):
        found = page.unfold(0, 8, 1).unfold(1, 8, 1).sub(image).abs().amax((2, 3))
        places |= {tuple(place) for place in (found < 1e-6).nonzero().tolist()}
        assert page.sum().item() == pytest.approx(image.sum().item(), abs=1e-3)  # the rest is empty
    assert len(places) > 60  # of 81
    again = script.paste(images, torch.Generator().manual_seed(0)).squeeze(1)
    assert torch.equal(again * script.DEVIATION + script.MEAN, pasted)


def test_the_arms_are_what_they_are_called(script):
    for arm in script.ARMS:
        mixers = [m for m in script.build(arm).modules() if isinstance(m, SS2D)]
        assert mixers and all(m.conv is None for m in mixers), arm
        assert all(m.cascade is (arm == "cascade") for m in mixers)
        assert all((m.adaptor_t is not None) is (" T" in arm) for m in mixers)
        assert all((m.adaptor_s is not None) is arm.endswith("+ S") for m in mixers)
        assert all(isinstance(m.state_fn, StateFusion) is ("SASF" in arm) for m in mixers)
        assert all(isinstance(m.adaptor_t, AdaptorT) for m in mixers if " T" in arm)
        assert all(isinstance(m.adaptor_s, AdaptorS) for m in mixers if arm.endswith("+ S"))
    routes = {arm: [m.routes for m in script.build(arm).modules() if isinstance(m, SS2D)] for arm in script.ARMS}
    assert routes["cross"] != routes["bidirectional"] != routes["unidirectional"] != routes["cross"]


def test_a_finished_cell_is_not_run_again(script, tmp_path, capsys):
    arms, threads = ["cross", "cross + T + S"], torch.get_num_threads()
    try:
        for arm in arms:
            path = script.place_of(tmp_path, arm, 0, 3)
            path.parent.mkdir(exist_ok=True)
            cell = script.run_cell(arm, 0, 3, path)
            assert cell == json.loads(path.read_text()) and 0 <= cell["accuracy"] <= 1
    finally:
        torch.set_num_threads(threads)
    script.run(arms, 1, 3, tmp_path, 1)
    assert "2 cells, 2 there already" in capsys.readouterr().out
    assert script.stored(path, script.settings_of(arms[0], 0, 3)) is None  # other settings
    found = script.summary(list(script.ARMS), 5, 3, tmp_path)
    assert [(row["arm"], row["seeds"], row["sd"]) for row in found] == [(arm, 1, None) for arm in arms]
    script.write(found, 3, tmp_path)
    assert (tmp_path / "shifted_digits.png").stat().st_size > 10_000
    assert (tmp_path / "shifted_digits.csv").read_text().startswith("arm,seeds,mean,sd,accuracies")
    assert len(json.loads((tmp_path / "shifted_digits.json").read_text())["arms"]) == 2
