"""Files of adaptors from strangers: one CheckpointError each, and the base stays as it was."""

import copy
import json
import os
import struct
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vssm
from vssm.nn.attach import has_adaptors
from vssm.weights import CheckpointError, load_checkpoint

GAIN = "stages.0.blocks.0.mixer.adaptor_t.gain"


def _base(**options):
    torch.manual_seed(0)
    return vssm.create_model("vmamba_nano", num_classes=5, **options).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The tensors and the metadata of an honest file."""
    model = vssm.add_adaptors(_base())
    vssm.freeze_base(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01
    file = vssm.save_adaptors(model, tmp_path_factory.mktemp("adaptors") / "a.safetensors")
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def _refused(path, message, base=None):
    base = _base() if base is None else base
    before = copy.deepcopy(base.state_dict())
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        vssm.load_adaptors(base, path)
    assert time.process_time() - start < 3
    text = str(caught.value)
    assert path.name in text and text.replace("\n", "").isprintable() and len(text) < 1500
    assert not has_adaptors(base) and base.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    return text


def test_an_honest_file_is_taken(tmp_path, saved):
    tensors, metadata = saved
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    model = vssm.load_adaptors(_base(), tmp_path / "a.safetensors")
    assert GAIN in tensors and all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())


TENSORS = {
    "NaN": (lambda t: t * float("nan"), rf"NaN or infinity in 1 of \d+ tensors: {GAIN}"),
    "infinity": (lambda t: t + float("inf"), rf"NaN or infinity in 1 of \d+ tensors: {GAIN}"),
    "integers": (lambda t: t.long(), rf"values of another kind .*, 1: {GAIN} integer instead of real"),
    "complex": (lambda t: t.to(torch.complex64), f"has complex tensors, .* 1: {GAIN}"),
    "another shape": (lambda t: t[:, :1].clone(), rf"other shapes, 1: {GAIN} \(4, 1\) instead of \(4, "),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_values_that_no_adaptor_has(tmp_path, saved, kind):
    tensors, metadata = saved
    change, message = TENSORS[kind]
    save_file(tensors | {GAIN: change(tensors[GAIN])}, tmp_path / "a.safetensors", metadata)
    _refused(tmp_path / "a.safetensors", message)


def test_values_that_no_head_has(tmp_path, saved):
    tensors, metadata = saved
    save_file(tensors | {"head.fc.bias": torch.full((5,), float("nan"))}, tmp_path / "a.safetensors", metadata)
    _refused(tmp_path / "a.safetensors", r"NaN or infinity in 1 of \d+ tensors: head.fc.bias")


def test_names_of_a_stranger(tmp_path, saved):
    tensors, metadata = saved
    file = tmp_path / "a.safetensors"
    hostile = "stages.0.adaptor_t.\x1b[2J\r\nall is fine\u202e"
    save_file(tensors | {hostile: torch.zeros(1)}, file, metadata)
    _refused(file, r"unexpected, 1: stages\.0\.adaptor_t\.\\x1b\[2J")
    save_file({name: tensor for name, tensor in tensors.items() if name != GAIN}, file, metadata)
    _refused(file, f"missing, 1: {GAIN}")
    save_file(tensors, file, metadata | {"model": "\x1b[2J" + "x" * 10_000})
    _refused(file, r"has the adaptors of a \\x1b\[2Jx{100,120}\.\.\., the model is a vmamba_nano")


OPTIONS = {
    "absent": "",
    "no JSON": "{temporal}",
    "a list": "[1, 2]",
    "an unknown option": {"temporal": True, "code": "import os"},
    "the model itself": {"model": 1},
    "deep": '{"points": ' + "[" * 400 + "]" * 400 + "}",
    "long": {"dilations": list(range(100_000))},
    "points beyond memory": {"points": 10**13},
    "points beyond 64 bits": {"points": 10**40},
    "no points": {"points": 0},
    "words for points": {"points": "4"},
    "another share": {"share": "\x1b[2J"},
    "neither kind": {"temporal": False, "spatial": False},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_of_a_stranger(tmp_path, saved, kind):
    tensors, metadata = saved
    options = OPTIONS[kind]
    text = options if isinstance(options, str) else json.dumps(options)
    save_file(tensors, tmp_path / "a.safetensors", metadata | {"adaptors": text})
    _refused(tmp_path / "a.safetensors", "has no options that add_adaptors takes|does not fit the model")


def test_a_model_that_cannot_take_them(tmp_path, saved):
    save_file(*saved[:1], tmp_path / "a.safetensors", saved[1])
    _refused(tmp_path / "a.safetensors", "no states on one grid", _base(scan="cascade"))


@pytest.mark.parametrize("missing", ["format", "model", "base", "adaptors"])
def test_metadata_left_out(tmp_path, saved, missing):
    tensors, metadata = saved
    save_file(tensors, tmp_path / "a.safetensors", {name: v for name, v in metadata.items() if name != missing})
    _refused(tmp_path / "a.safetensors", "not written by|adaptors of a|other weights|no options")


def test_another_kind_of_file(tmp_path, saved):
    tensors, _ = saved
    save_file(tensors, tmp_path / "plain.safetensors")
    _refused(tmp_path / "plain.safetensors", "was not written by save_adaptors")
    torch.save(tensors, tmp_path / "a.pth")
    _refused(tmp_path / "a.pth", "is not a whole safetensors file")
    (tmp_path / "page.safetensors").write_text("<html></html>")
    _refused(tmp_path / "page.safetensors", "is a web page, not weights")
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{" + b" " * 100)
    _refused(tmp_path / "huge.safetensors", "is not a whole safetensors file")


def test_a_truncated_file(tmp_path, saved):
    save_file(*saved[:1], tmp_path / "whole.safetensors", saved[1])
    content = (tmp_path / "whole.safetensors").read_bytes()
    for size in (1, 7, 9, 200, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:size])
        _refused(tmp_path / "cut.safetensors", "is not a whole safetensors file")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    _refused(tmp_path / "empty.safetensors", "is empty")


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        vssm.load_adaptors(_base(), tmp_path / "nowhere.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        vssm.load_adaptors(_base(), tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    _refused(tmp_path / "pipe.safetensors", "is not a regular file")


def test_adaptors_that_do_not_train_are_saved_too(tmp_path):
    model = vssm.add_adaptors(_base())
    vssm.freeze_base(model)
    frozen = dict(model.named_parameters())[GAIN]
    with torch.no_grad():
        frozen.fill_(0.5)
    frozen.requires_grad = False
    again = vssm.load_adaptors(_base(), vssm.save_adaptors(model, tmp_path / "a.safetensors"))
    assert torch.equal(again.state_dict()[GAIN], frozen)


def test_nan_for_a_model_without_values(tmp_path):
    """A model on the meta device has nothing to compare a NaN with."""
    torch.save(torch.nn.Linear(2, 2).state_dict() | {"bias": torch.tensor([0.0, float("nan")])}, tmp_path / "a.pth")
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="NaN or infinity in 1 of 2 tensors: bias"):
        load_checkpoint(layer, tmp_path / "a.pth")
