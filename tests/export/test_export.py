"""Exported files: what is in them, that they are right, and that a wrong one is never left."""

import copy
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import vssm
from vssm.data.preprocess import Preprocess
from vssm.export import export
from vssm.export.check import Checked
from vssm_cli.command import main

SMALL = {"dims": (8, 16), "depths": (1, 1), "num_classes": 3, "drop_path_rate": 0.0}
PREPROCESS = Preprocess((3, 32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
CLASSES = ("cat", "dog", "Äpfel")


def network():
    torch.manual_seed(0)
    return vssm.create_model("vmamba_nano", **SMALL)


def test_onnx(tmp_path):
    model = network().train()
    done = export(model, PREPROCESS, tmp_path / "a.onnx", classes=CLASSES, name="vmamba_nano")
    assert model.training, "left as it was"
    assert [(one.runtime, one.batch) for one in done.checked] == [("onnxruntime", 1), ("onnxruntime", 3)]
    assert all(one.error < 1e-5 and one.seconds > 0 and one.eager > 0 for one in done.checked)
    assert done.bytes == (tmp_path / "a.onnx").stat().st_size and list(tmp_path.iterdir()) == [tmp_path / "a.onnx"]
    stored = onnx.load(tmp_path / "a.onnx")
    about = {entry.key: entry.value for entry in stored.metadata_props}
    assert json.loads(about["classes"]) == list(CLASSES) and about["model"] == "vmamba_nano"
    assert Preprocess.from_dict(json.loads(about["preprocess"])) == PREPROCESS
    assert about["vssm"] == vssm.__version__ and about["torch"] == torch.__version__.partition("+")[0]
    assert sum(node.op_type == "Scan" for node in stored.graph.node) == 2, "one for each block"
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape[1:], made.name) == ("image", [3, 32, 32], "logits")
    x = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        want = model.eval()(x)
    np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], want, rtol=1e-4, atol=1e-6)


def test_pt2(tmp_path):
    model = network().eval()
    done = export(model, PREPROCESS, tmp_path / "a.pt2", "pt2", dynamic=(), classes=CLASSES)
    assert [(one.runtime, one.batch) for one in done.checked] == [("torch", 1)]
    files = {"vssm.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=files)
    assert json.loads(json.loads(files["vssm.json"])["classes"]) == list(CLASSES)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-6)


def test_features(tmp_path):
    model = network().eval()
    export(model, PREPROCESS, tmp_path / "a.onnx", features=True)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert [made.name for made in session.get_outputs()] == ["stage0", "stage1"]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = model.forward_intermediates(x, intermediates_only=True)
    for found, one in zip(session.run(None, {"image": x.numpy()}), want, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-5)


def test_a_model_of_timm(tmp_path):
    import timm

    model = timm.create_model("test_convnext", num_classes=3)
    done = export(model, PREPROCESS, tmp_path / "a.onnx")
    assert max(one.error for one in done.checked) < 1e-4


def test_a_wrong_file_is_not_left(tmp_path, monkeypatch):
    (tmp_path / "a.pt2").write_text("older")
    wrong = [Checked("torch", 1, 3e-4, 1.0, 1.0), Checked("torch", 3, float("nan"), 1.0, 1.0)]
    for one in wrong:
        monkeypatch.setattr("vssm.export.write.check", lambda *_, one=one: [one])
        with pytest.raises(ValueError, match=r"a\.pt2 was not written: in torch its results are"):
            export(network(), PREPROCESS, tmp_path / "a.pt2", "pt2")
    assert (tmp_path / "a.pt2").read_text() == "older" and len(list(tmp_path.iterdir())) == 1


def test_the_check_sees_a_wrong_file(tmp_path, monkeypatch):
    """One scale of one norm, changed in the file's network alone."""
    from vssm.export import write

    made = write._program

    def changed(network, *args):
        other = copy.deepcopy(network)
        with torch.no_grad():
            other.norm.weight[0] += 0.5
        return made(other, *args)

    monkeypatch.setattr(write, "_program", changed)
    with pytest.raises(ValueError, match="of the largest away from the network's"):
        export(network(), PREPROCESS, tmp_path / "a.pt2", "pt2")


def test_a_runtime_that_cannot_run_it(tmp_path, monkeypatch):
    monkeypatch.setattr("vssm.export.write._write_pt2", lambda program, path, about: path.write_bytes(b"no"))
    with pytest.raises(ValueError, match="torch cannot run the exported file: "):
        export(network(), PREPROCESS, tmp_path / "a.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown format 'tflite': choose one of onnx, pt2"):
        export(network(), PREPROCESS, tmp_path / "a", "tflite")
    with pytest.raises(ValueError, match="height cannot stay free: only batch can"):
        export(network(), PREPROCESS, tmp_path / "a.onnx", dynamic=("batch", "height"))
    with pytest.raises(ValueError, match="none is not there; make the folder first"):
        export(network(), PREPROCESS, tmp_path / "none" / "a.onnx")
    monkeypatch.setattr("vssm.export.write.find_spec", lambda package: None if package == "onnxscript" else True)
    with pytest.raises(ValueError, match=r'onnx needs onnxscript: pip install "vssm\[export\]"'):
        export(network(), PREPROCESS, tmp_path / "a.onnx")


def test_the_command(tmp_path, capsys, monkeypatch):
    from tests.inference.test_subject import RUN

    assert main(["export", str(RUN), "--out", str(tmp_path / "a.pt2"), "--fixed-batch"]) == 0
    shown = capsys.readouterr().out
    assert "a.pt2" in shown and "images of 3x16x16" in shown and "torch, batch 1: error" in shown
    files = {"vssm.json": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=files)
    about = json.loads(files["vssm.json"])
    assert json.loads(about["classes"]) == list(vssm.load(RUN).classes) and about["model"] == "vmamba_nano"


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["vmamba_nano", "--out", "a.tflite"], 2, "--out a.tflite must end in .onnx, .pt2"),
        (["vmamba_nano", "--out", "a.onnx", "--format", "pt2"], 2, "--out a.onnx must end in .pt2, as --format says"),
        (["vmamba_nano", "--out", "a.onnx", "--image-size", "0"], 2, "--image-size must be at least 1, not 0"),
        (["vmamba_nan", "--out", "a.onnx"], 1, "unknown model 'vmamba_nan'"),
        (["none.ckpt", "--out", "a.onnx"], 1, "none.ckpt"),
    ],
)
def test_mistakes_are_one_line(argv, code, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *argv]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_importing_is_light():
    code = "import sys, vssm.export; print([name for name in ('onnx', 'onnxruntime', 'rich') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
