"""vssm info: what it prints is what runs."""

import timm
import torch

import vssm
from vssm import ops
from vssm_cli.command import main


def test_every_operator_with_its_backend_and_reason(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["info", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines if line[:1].isalpha() and not line.startswith("C++"))
    assert (facts["vssm"], facts["timm"]) == (vssm.__version__, timm.__version__)
    assert facts["torch"].startswith(f"{torch.__version__}, {torch.get_num_threads()} threads")
    assert facts["device"] == "cpu, float32"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    shown = {name: (path, why) for name, path, why in cells if name}
    explanation = ops.explain(device="cpu")
    assert shown == {choice.op: (choice.path, choice.why) for choice in explanation.choices}
    assert f"C++ core     {explanation.core}" in lines


def test_why_a_backend_does_not_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with ops.use("torch"):
        assert main(["info", "--device", "cpu", "--dtype", "float64"]) == 0
        choices = {choice.op: choice for choice in ops.explain(device="cpu", dtype=torch.float64).choices}
    shown = capsys.readouterr().out
    assert "device       cpu, float64" in shown
    assert choices["ss2d"].path == "torch"
    assert all(choice.why in shown for choice in choices.values())


def test_a_device_that_is_not_here(capsys):
    assert main(["info", "--device", "nowhere"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert "device 'nowhere' is not available here; available: cpu" in shown.err
