"""vssm convert: an official file becomes one that the model takes strictly."""

import pytest
import torch
from safetensors.torch import load_file

import vssm
from vssm.weights.rename import VMAMBA, to_official
from vssm_cli.command import main


@pytest.fixture
def official(tmp_path):
    """A file in the authors' form, raw and averaged weights in it; and both under our names."""
    raw, averaged = (vssm.create_model("vmamba_nano", num_classes=3).state_dict() for _ in range(2))
    torch.save({"model": to_official(raw, VMAMBA), "model_ema": to_official(averaged, VMAMBA)}, tmp_path / "a.pth")
    return tmp_path / "a.pth", raw, averaged


def test_raw_and_averaged_weights(official, tmp_path, capsys):
    file, raw, averaged = official
    for options, expected in (([], raw), (["--ema"], averaged)):
        out = tmp_path / "out.safetensors"
        assert main(["convert", str(file), str(out), *options]) == 0
        shown = capsys.readouterr()
        assert shown.out.startswith("wrote ") and str(out) in shown.out and shown.err == ""
        found = load_file(out)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        vssm.load_checkpoint(vssm.create_model("vmamba_nano", num_classes=3), out)


def test_mistakes_are_one_line_and_write_nothing(official, tmp_path, capsys):
    file, *_ = official
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no weights")
    for source, target, words in (
        (tmp_path / "none.pth", "out.safetensors", "none.pth"),
        (damaged, "out.safetensors", "damaged.pth"),
        (file, "out.pth", "must be a file that ends in .safetensors"),
    ):
        assert main(["convert", str(source), str(tmp_path / target)]) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and words in shown.err and shown.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "damaged.pth"]
