"""Files from strangers: one CheckpointError each, in bounded time and memory, whatever is in them."""

import json
import os
import pickle
import random
import resource
import struct
import time
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save, save_file

import vssm
from vssm.inference.checkpoint import load_weights
from vssm.weights import CheckpointError, load_checkpoint
from vssm.weights.pickle_cost import check_pickle
from vssm.weights.rename import SPATIAL_MAMBA, VMAMBA, to_official

WEIGHT = "layers.0.blocks.0.op.in_proj.weight"
OURS = "stages.0.blocks.0.mixer.in_proj.weight"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return vssm.create_model("vmamba_nano", num_classes=5).eval()


@pytest.fixture
def official(model):
    return to_official({name: tensor.clone() for name, tensor in model.state_dict().items()}, VMAMBA)


def _refused(model, path, message):
    """Loading is refused with one message that names the file, within a second, and leaves the model alone."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, path)
    assert time.process_time() - start < 1
    text = str(caught.value)
    assert path.name in text and text.replace("\n", "").isprintable() and len(text) < 2000
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return text


# ---- values ----

UNUSABLE = {
    "integers": (lambda t: t.long(), rf"values of another kind .*, 1: {OURS} integer instead of real; save"),
    "booleans": (lambda t: t > 0, rf"another kind .*{OURS} boolean instead of real"),
    "complex": (lambda t: t.to(torch.complex64), f"has complex tensors, .* 1: {WEIGHT}; save it with plain tensors"),
    "sparse": (lambda t: t.to_sparse(), f"has sparse tensors, .* 1: {WEIGHT}"),
    "compressed rows": (lambda t: t.to_sparse_csr(), f"has sparse tensors, .* 1: {WEIGHT}"),
    "meta": (lambda t: t.to("meta"), f"has tensors without values .* 1: {WEIGHT}"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), f"has quantised tensors, .* {WEIGHT}"),
    "expanded": (lambda t: torch.zeros(1).expand(1 << 20, 1 << 20), f"has expanded tensors, .* 1: {WEIGHT}"),
    "NaN": (lambda t: t.index_fill(0, torch.tensor(1), float("nan")), rf"infinity in 1 of \d+ tensors: {OURS}\."),
    "infinity": (lambda t: t.index_fill(1, torch.tensor(2), float("-inf")), rf"in 1 of \d+ tensors: {OURS}.*earlier"),
    "half NaN": (lambda t: (t * float("nan")).half(), rf"NaN or infinity in 1 of \d+ tensors: {OURS}"),
    "scalar": (lambda t: t.sum(), rf"other shapes, 1: {OURS} \(\) instead of"),
    "empty": (lambda t: t[:0], rf"other shapes, 1: {OURS} \(0, "),
    "a list": (lambda t: t.tolist(), f"missing, 1: {OURS}"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:.*quantize_per_tensor")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_tensor_that_is_no_weight(tmp_path, model, official, kind):
    change, message = UNUSABLE[kind]
    official[WEIGHT] = change(official[WEIGHT])
    torch.save({"model": official}, tmp_path / "file.pth")
    _refused(model, tmp_path / "file.pth", message)


@pytest.mark.parametrize("kind", ["integers", "booleans", "complex", "NaN", "sparse", "expanded"])
def test_a_tensor_that_is_no_weight_of_another_timm_model(tmp_path, kind):
    change, _ = UNUSABLE[kind]
    other = timm.create_model("test_resnet", num_classes=5)
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    state["layer1.0.conv1.weight"] = change(state["layer1.0.conv1.weight"][:, :, 0, 0])
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight"):
        load_weights(other, tmp_path / "file.pth")


def test_convert_refuses_what_is_no_weight(tmp_path, official):
    for kind in ("integers", "complex", "NaN", "sparse", "expanded"):
        changed = official | {WEIGHT: UNUSABLE[kind][0](official[WEIGHT])}
        torch.save(changed, tmp_path / "file.pth")
        with pytest.raises(CheckpointError, match=f"{WEIGHT}|{OURS}"):
            vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors")
        assert not (tmp_path / "out.safetensors").exists()


def test_counters_are_integers(tmp_path):
    source = vssm.create_model("spatial_mamba_nano", num_classes=5)
    state = to_official(source.state_dict(), SPATIAL_MAMBA)
    assert any(name.endswith("num_batches_tracked") for name in state)
    torch.save(state, tmp_path / "file.pth")
    assert vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors").loaded == len(state)
    load_checkpoint(source, tmp_path / "out.safetensors")
    name = next(name for name in state if name.endswith("num_batches_tracked"))
    torch.save(state | {name: torch.tensor(3.0)}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="num_batches_tracked real instead of integer"):
        load_checkpoint(source, tmp_path / "file.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_other_floats_are_taken(tmp_path, model, official, dtype):
    torch.save({name: tensor.to(dtype) for name, tensor in official.items()}, tmp_path / "file.pth")
    other = vssm.create_model("vmamba_nano", num_classes=5)
    load_checkpoint(other, tmp_path / "file.pth")
    assert torch.equal(other.state_dict()[OURS], official[WEIGHT].to(dtype).float())


def test_what_a_model_has_itself_is_no_damage(tmp_path):
    """A buffer of a mask may hold infinity; it is the same in the file."""
    layer = torch.nn.Linear(2, 2)
    layer.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    torch.save(layer.state_dict(), tmp_path / "file.pth")
    assert load_checkpoint(layer, tmp_path / "file.pth").loaded == 3


def test_tensors_that_share_memory_are_written_apart(tmp_path, model, official):
    whole = torch.cat([official[WEIGHT].flatten(), official[WEIGHT].flatten()])
    official[WEIGHT] = whole[: official[WEIGHT].numel()].view_as(official[WEIGHT])
    official["layers.0.blocks.0.op.extra"] = whole
    torch.save(official, tmp_path / "file.pth")
    report = vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors")
    assert report.kept == ("stages.0.blocks.0.mixer.extra",) or report.loaded == len(official)
    assert "layers.0.blocks.0.op" not in str(report)


# ---- names ----


@pytest.mark.parametrize(
    "twice",
    [
        ("patch_embed.0.weight", "patch_embed.proj.weight", "stem.conv1.weight"),
        ("classifier.head.weight", "head.weight", "head.fc.weight"),
        (WEIGHT, WEIGHT.replace("op", "self_attention"), OURS),
    ],
)
def test_two_official_names_of_one_tensor(tmp_path, model, official, twice):
    first, second, ours = twice
    torch.save(official | {second: official[first] + 1}, tmp_path / "file.pth")
    message = f"has {first} beside {second}, and both are {ours} here; remove"
    _refused(model, tmp_path / "file.pth", message)
    with pytest.raises(CheckpointError, match=message):
        vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors")


def test_two_names_by_their_prefix(tmp_path):
    other = timm.create_model("test_resnet", num_classes=5)
    state = other.state_dict()
    torch.save(state | {"module.fc.bias": state["fc.bias"] + 1}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"has fc.bias beside module.fc.bias, and both are fc.bias here"):
        load_checkpoint(other, tmp_path / "file.pth")


def test_names_do_nothing_to_a_terminal(tmp_path, model, official):
    hostile = "layers.0.\x1b[2J\x07\r\nfile.pth is fine\u202e"
    torch.save(official | {hostile: torch.zeros(1)}, tmp_path / "file.pth")
    text = _refused(model, tmp_path / "file.pth", r"unexpected, 1: layers\.0\.\\x1b\[2J")
    assert text.count("\n") == 1
    with pytest.raises(CheckpointError, match=r"names that no module can have: layers\.0\.\\x1b\[2J"):
        vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors")
    torch.save({hostile: 1}, tmp_path / "file.pth")
    _refused(model, tmp_path / "file.pth", r"holds no tensors; it holds layers\.0\.\\x1b")
    torch.save({"x" * 5000: torch.zeros(1)}, tmp_path / "file.pth")
    _refused(model, tmp_path / "file.pth", r"holds no VMamba, Spatial-Mamba or Vim weights; .* x{100,130}\.\.\.")


def test_names_that_are_no_strings(tmp_path, model, official):
    torch.save({0: torch.zeros(1), ("a", 1): torch.zeros(1)}, tmp_path / "file.pth")
    _refused(model, tmp_path / "file.pth", "holds no tensors; it holds nothing with a name")
    torch.save(official | {3: torch.zeros(1)}, tmp_path / "file.pth")
    assert load_checkpoint(model, tmp_path / "file.pth").loaded == len(official)


STRANGERS = {
    "one tensor": {"weight": torch.zeros(2)},
    "stages": {"stages.0.blocks.0.conv.weight": torch.zeros(2), "stem.conv1.weight": torch.zeros(2)},
    "another mixer": {"blocks.0.mixer.fc1.weight": torch.zeros(2)},
    "a language model": {"layers.0.mixer.in_proj.weight": torch.zeros(2), "layers.0.mixer.A_log": torch.zeros(2)},
    "swin": {"layers.0.blocks.0.attn.qkv.weight": torch.zeros(2), "patch_embed.proj.weight": torch.zeros(2)},
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_convert_writes_known_families_only(tmp_path, kind):
    torch.save(STRANGERS[kind], tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth holds no VMamba, Spatial-Mamba or Vim weights; it has"):
        vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.parametrize("name", ["test_convnext", "test_mambaout", "test_vit", "test_resnet"])
def test_convert_refuses_other_timm_models(tmp_path, name):
    torch.save(timm.create_model(name).state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="holds no VMamba, Spatial-Mamba or Vim weights"):
        vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors")


def test_convert_lists_the_names_that_no_rule_knows(tmp_path, official):
    torch.save(official | {"layers.0.extra": torch.zeros(1)}, tmp_path / "file.pth")
    report = vssm.convert(tmp_path / "file.pth", tmp_path / "out.safetensors")
    assert report.kept == ("layers.0.extra",)
    assert "names of no rule, left as they are, 1: layers.0.extra" in str(report)


# ---- archives and pickles ----


def _zip(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path


def _laughs(levels=60):
    """A tuple that holds itself twice at every level, as a key: its hash visits 2^levels values."""
    level = b"h\x00h\x00\x86q\x00"
    return b"\x80\x02}(K\x01q\x00" + level * levels + b"K\x02u."


BEGIN, END = b"\x80\x02", b"."
BOMBS = {
    "a pickle of 128 MB": (BEGIN + b"N" * (128 << 20) + END, "beside its tensors unpacks to 134217731 bytes, more"),
    "two million constants": (BEGIN + b"N" * 2_000_000 + END, "would take more than 1500000 steps"),
    "two million dictionaries": (BEGIN + b"}" * 2_000_000 + END, "would take more than 1500000 steps"),
    "a hash without end": (_laughs(), "would take more than 1500000 steps"),
    "marks alone": (BEGIN + b"(" * 2_000_000, "would take more than 1500000 steps"),
    "a set of one key many times": (
        BEGIN + b"c__builtin__\nset\n(](" + b"K\x01" * 1000 + b"\x85" * 1000 + b"q\x00" + b"h\x00" * 200_000 + b"etR.",
        "would take more than|is refused|no checkpoint",
    ),
    "no end": (BEGIN + b"N", r"truncated or no checkpoint \(its pickle is broken at byte"),
    "nothing to take": (BEGIN + b"u.", r"truncated or no checkpoint \(its pickle is broken at byte"),
    "an unknown entry": (BEGIN + b"h\x07.", r"truncated or no checkpoint \(its pickle is broken at byte"),
    "a long string": (BEGIN + b"X\xff\xff\xff\xff.", r"truncated or no checkpoint \(its pickle is broken at byte"),
    "deep lists": (BEGIN + b"]" * 2_000 + b"a" * 1_999 + END, "holds a list, not a dictionary"),
    "deeper lists": (BEGIN + b"]" * 300_000 + b"a" * 299_999 + END, "would take more than 1500000 steps"),
    "an unknown operation": (BEGIN + b"\xff.", "is refused|no checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_would_keep_its_reader_busy(tmp_path, model, kind):
    content, message = BOMBS[kind]
    compression = zipfile.ZIP_DEFLATED if len(content) > 1 << 26 else zipfile.ZIP_STORED
    file = _zip(tmp_path / "bomb.pth", {"data.pkl": content, "version": "3\n", "byteorder": "little"}, compression)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, file)
    assert time.process_time() - start < 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["two million constants", "a hash without end", "no end"])
def test_such_a_pickle_in_a_file_of_an_old_torch(tmp_path, model, kind):
    content, message = BOMBS[kind]
    file = tmp_path / "old.pth"
    magic = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    file.write_bytes(b"".join(magic) + content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, file)


def test_numbers_that_unpack_to_far_more_than_the_file(tmp_path, model):
    file = _zip(tmp_path / "zeros.pth", {"data.pkl": b"\x80\x02}.", "data/0": bytes(64 << 20), "version": "3\n"})
    size = file.stat().st_size
    text = _refused(model, file, r"unpack to \d+, more than 100 times as much")
    assert str(size) in text
    with pytest.raises(CheckpointError, match=r"unpack to \d+, more than .* the 1000000 allowed"):
        load_checkpoint(model, file, max_bytes=1_000_000)


def test_files_of_old_torch_are_read(tmp_path, model, official):
    torch.save({"model": official, "epoch": 3}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    other = vssm.create_model("vmamba_nano", num_classes=5)
    load_checkpoint(other, tmp_path / "old.pth")
    assert torch.equal(other.state_dict()[OURS], official[WEIGHT])
    content = (tmp_path / "old.pth").read_bytes()
    for share in (0.01, 0.3, 0.9, 0.999):
        (tmp_path / "cut.pth").write_bytes(content[: int(len(content) * share)])
        _refused(model, tmp_path / "cut.pth", "truncated or no checkpoint|is refused")


def test_an_honest_pickle_is_followed_to_its_end(tmp_path, official):
    """Optimizer states, logs and settings beside the weights: well below the bound."""
    beside = {"optimizer": {"state": {i: {"step": torch.tensor(1.0), "betas": (0.9, 0.99)} for i in range(500)}}}
    beside |= {"losses": [i / 7 for i in range(200_000)], "names": ["ü" * 9, b"\0", None, True, -3, 1 << 70]}
    torch.save({"model": official, **beside}, tmp_path / "file.pth")
    with zipfile.ZipFile(tmp_path / "file.pth") as archive:
        data = archive.read("file/data.pkl")
    assert check_pickle(data, 0, "file") == len(data)
    assert check_pickle(b"..." + data, 3, "file") == len(data) + 3


# ---- safetensors ----


def _tensors(header, body=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _one(**changes):
    return {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


BROKEN = {
    "beyond 64 bits": _tensors(_one(shape=[1 << 64])),
    "beyond 128 bits": _tensors(_one(shape=[1 << 130])),
    "a product beyond 64 bits": _tensors(_one(shape=[1 << 32, 1 << 32, 4])),
    "a negative shape": _tensors(_one(shape=[-2])),
    "a fraction": _tensors(_one(shape=[2.5])),
    "unknown numbers": _tensors(_one(dtype="F31")),
    "numbers of 4 bits": _tensors(_one(dtype="F4", shape=[16])),
    "numbers of 6 bits": _tensors(_one(dtype="F6_E2M3", shape=[8], data_offsets=[0, 6]), b"\0" * 6),
    "exponents alone": _tensors(_one(dtype="F8_E8M0", shape=[8])),
    "outside the file": _tensors(_one(data_offsets=[8, 16])),
    "backwards": _tensors(_one(data_offsets=[8, 0])),
    "a gap": _tensors(_one(data_offsets=[4, 12]), b"\0" * 12),
    "overlapping": _tensors(_one() | {"bias": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\0" * 12),
    "no JSON": _tensors(b"{weight: 1}"),
    "a list": _tensors(b"[1, 2]"),
    "not UTF-8": _tensors(b'{"\xff": 1}'),
    "deep": _tensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a long header": struct.pack("<Q", 1 << 60) + b"{" + b" " * 100,
    "numbers as metadata": _tensors({"__metadata__": {"format": 3}} | _one()),
    "bytes left over": _tensors(_one(), b"\0" * 80),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_broken_safetensors(tmp_path, model, kind, suffix):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(BROKEN[kind])
    _refused(model, file, "is not a whole safetensors file|is no checkpoint|holds no VMamba|8-bit")


def test_values_in_safetensors(tmp_path, model, official):
    for kind in ("integers", "booleans", "complex", "NaN"):
        change, message = UNUSABLE[kind]
        save_file(official | {WEIGHT: change(official[WEIGHT]).contiguous()}, tmp_path / "file.safetensors")
        _refused(model, tmp_path / "file.safetensors", message)


# ---- what is no file ----


def test_what_is_no_file(tmp_path, model):
    os.mkfifo(tmp_path / "pipe.pth")
    _refused(model, tmp_path / "pipe.pth", "is not a regular file; give the checkpoint file itself")
    (tmp_path / "link.pth").symlink_to(tmp_path / "nowhere.pth")
    (tmp_path / "circle.pth").symlink_to(tmp_path / "circle.pth")
    for name in ("link.pth", "circle.pth"):
        with pytest.raises(OSError, match=name):
            load_checkpoint(model, tmp_path / name)
    (tmp_path / "good.pth").write_bytes(b"")
    (tmp_path / "to.pth").symlink_to("good.pth")
    _refused(model, tmp_path / "to.pth", "is empty")


# ---- any bytes ----


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_damaged_bytes(tmp_path, form):
    """Bytes changed, cut and doubled anywhere: what is no checkpoint any more is refused by one error."""
    layer = torch.nn.Linear(3, 2)
    state = {"model": layer.state_dict() | {"extra": torch.arange(4.0)}, "epoch": 3, "note": ("a", [1, 2.5, None])}
    file = tmp_path / "file.pth"
    if form == "safetensors":
        file.write_bytes(save(dict(state["model"])))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    content, draw, refused = file.read_bytes(), random.Random(7), 0
    # What matters is the pickle at the beginning, and the directory at the end.
    for trial in range(150):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 8))):
            at = draw.choice(
                (
                    draw.randrange(min(400, len(content))),
                    draw.randrange(len(content)),
                    -draw.randrange(1, min(300, len(content))),
                )
            )
            damaged[at] = draw.choice((0, 255, draw.randrange(256), damaged[at] ^ 1))
        if trial % 5 == 0:
            at = draw.randrange(len(damaged))
            damaged = damaged[:at] + (damaged[at - 20 : at] if trial % 10 else b"")
        file.write_bytes(damaged)
        try:
            load_checkpoint(layer, file)
        except CheckpointError as error:
            refused += 1
            assert str(error).replace("\n", "").isprintable() and str(file) in str(error)
    assert refused > 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # kB
