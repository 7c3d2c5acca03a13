"""benchmarks/runtimes.py: what is wrong or missing is said, and never timed."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch

import vssm.export.formats
from tests.benchmark_scripts import FOLDER, load


@pytest.fixture(scope="module")
def script():
    return load("runtimes")


def off_by(factor, prepare, network, images):
    """A runtime whose first logit is off by a share of the largest."""
    run = prepare(network, images)

    def wrong():
        logits = run().clone()
        logits[0, 0] += factor * logits.abs().max()
        return logits

    return wrong


def test_wrong_results_are_named_and_not_timed(script, monkeypatch, tmp_path):
    for name, factor in (("eager", 2e-4), ("autocast", 0.5)):
        runtime = script.RUNTIMES[name]
        wrong = replace(runtime, prepare=partial(off_by, factor, runtime.prepare))
        monkeypatch.setitem(script.RUNTIMES, f"wrong {name}", wrong)
    network = script.Network("test_vit", tmp_path)
    names = ["eager", "wrong eager", "bfloat16", "autocast", "wrong autocast"]
    done = script.measure([network], names, 2, 1, script.time.perf_counter)
    found = {name: done.found["test_vit", name] for name in names}
    assert [name for name, one in found.items() if one.problem] == ["wrong eager", "wrong autocast"]
    assert all(math.isnan(one.seconds) == bool(one.problem) for one in found.values())
    assert found["eager"].error == 0 and 1e-3 < found["bfloat16"].error < 0.1
    assert found["wrong eager"].error == pytest.approx(2e-4, rel=0.01)
    assert found["wrong eager"].problem == "WRONG: 2.0e-04 of the largest logit from eager float32, at most 1e-04"


def test_a_failed_export_is_tried_once(script, monkeypatch, tmp_path):
    tried = []

    def export(model, preprocess, path):
        tried.append(path.name)
        raise ValueError("ONNX cannot express it")

    monkeypatch.setattr(script, "export", export)
    network = script.Network("test_vit", tmp_path)
    done = script.measure([network], ["onnxruntime", "openvino"], 1, 1, script.time.perf_counter)
    assert [one.problem for one in done.found.values()] == 2 * ["does not run: ONNX cannot express it"]
    assert tried == ["test_vit.onnx"]


def test_missing_packages_are_named_with_the_extra(script, monkeypatch, capsys):
    monkeypatch.setattr(vssm.export.formats, "find_spec", lambda name: None if name == "openvino" else name)
    assert script.usable(["eager", "openvino", "openvino bf16"]) == ["eager"]
    said = 'openvino needs openvino: pip install "vssm[export,openvino]"'
    assert capsys.readouterr().out == f"not measured: openvino: {said}\nnot measured: openvino bf16: {said}\n"


def test_statistics_keep_activations_at_the_scale_of_one(script):
    model = timm.create_model("mobileone_s0").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(images).abs().max()
        script._set_statistics(model, (4, 3, 64, 64))
        after = model(images).abs().max()
    assert after < 1e3 < 1e6 < before
    momenta = {module.momentum for module in model.modules() if hasattr(module, "momentum")}
    assert momenta == {0.1} and not any(module.training for module in model.modules())


@pytest.mark.full
def test_every_runtime_runs_and_agrees(tmp_path):
    words = "--only vmamba_nano test_vit --peers test_convnext --batch 2 --runs 1 --json".split()
    argv = [sys.executable, str(FOLDER / "runtimes.py"), *words, str(tmp_path / "found.json")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 21
    for one in found:
        half = one["runtime"] in ("bfloat16", "autocast", "openvino bf16")
        assert one["error"] <= (0.05 if half else 1e-5), one
        assert one["seconds"] > 0 and not one["problem"], one
