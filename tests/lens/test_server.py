"""What the page is answered: the numbers of vssm.analysis, or one message."""

import base64
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import vssm
from tests.lens.client import LOOK, SMALL, Client, matrix, message, values
from tests.lens.conftest import picture
from vssm.analysis import activation_map, effective_receptive_field, mixing_matrix, state_maps
from vssm.data.preprocess import published_preprocess
from vssm.inference.predictor import Predictor
from vssm.lens import looks
from vssm.lens.encoding import quantised
from vssm.lens.images import bundled
from vssm.tasks.classification import class_names

ASK = LOOK | {"image": "noise"}


@pytest.fixture(scope="module")
def network(sample):
    """The same network and input without the server."""
    torch.manual_seed(0)
    model = vssm.create_model("vmamba_nano").eval()
    return model, published_preprocess(model, 32)(sample)


def test_what_can_be_chosen(client):
    found = client.get("/api/choices").json()
    assert found["models"] == list(vssm.list_models()) and found["model"] == "vmamba_tiny"
    assert (found["images"], found["checkpoints"]) == (["noise"], [])
    assert found["weights"] == ["scan", "qk", "decayed_qk", "decay"]


def test_only_some_models(sample):
    with Client(samples={"noise": sample}, models=["vim_nano", "vmamba_nano"]) as client:
        found = client.get("/api/choices").json()
        assert (found["models"], found["model"]) == (["vim_nano", "vmamba_nano"], "vim_nano")
        assert "unknown model 'vmamba_tiny'" in client.refused("open", **(ASK | {"model": "vmamba_tiny"}))
    with pytest.raises(ValueError, match="unknown model 'vmamba_nanp'; nearest: vmamba_nano"):
        Client(models=["vmamba_nanp"])


def test_the_photographs_of_installed_packages():
    found = bundled()
    assert {"china", "flower"} <= set(found), "scikit-learn is in the extra train"
    with Client() as client:
        assert client.get("/api/choices").json()["images"] == list(found)
        assert client.ask("open", image=next(iter(found)), **SMALL)["size"] == [32, 32]


def test_opening_gives_what_predict_gives(client, network, sample):
    model, _ = network
    found = client.ask("open", image="noise", **SMALL)
    predictor = Predictor("vmamba_nano", model, published_preprocess(model, 32), class_names(model))
    (want,) = predictor.predict(sample)
    assert [one["name"] for one in found["classes"]] == [name for name, _ in want.classes]
    assert [one["probability"] for one in found["classes"]] == pytest.approx([p for _, p in want.classes], rel=1e-5)
    assert (found["model"], found["random"], found["size"]) == ("vmamba_nano", True, [32, 32])
    assert found["blocks"] == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]
    head, _, content = found["view"].partition(",")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert head == "data:image/png;base64" and seen.shape == (32, 32, 3)
    pixels = predictor.preprocess.transform().pixels(Image.open(sample))
    assert np.array_equal(seen, pixels.numpy())


@pytest.mark.parametrize("channel", [None, 3])
@pytest.mark.parametrize("weights", ["scan", "qk", "decayed_qk", "decay"])
def test_a_click(client, network, weights, channel):
    model, x = network
    found = client.ask("click", **(ASK | {"query": [2, 5], "weights": weights, "channel": channel}))
    want = activation_map(model, x, (2, 5), "1.1", weights, channel)
    assert found["query"] == [2, 5]
    np.testing.assert_allclose(values(found["routes"]), want.routes.numpy(), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(values(found["combined"]), want.combined.numpy(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("channel", [None, 3])
def test_a_block_and_its_states(client, network, channel):
    model, x = network
    found = client.ask("block", **(ASK | {"channel": channel}))
    states = state_maps(model, x, "1.1")
    want = states.mean() if channel is None else states.channel(channel)
    for part, expected in zip(("before", "after"), want, strict=True):
        np.testing.assert_allclose(values(found["states"][part]), expected.numpy(), rtol=1e-5, atol=1e-8)
    assert (found["rows"], found["columns"], found["channels"], found["states_per_channel"]) == (8, 8, 64, 1)
    assert found["routes"] == ["rows forwards", "columns forwards", "rows backwards", "columns backwards"]
    assert (found["cascade"], found["class_token"], found["whole"]) == (False, False, True)
    assert not found["states"]["fused"]


def test_states_behind_the_fusion(client):
    found = client.ask("block", **(ASK | {"model": "spatial_mamba_nano"}))
    before, after = (values(found["states"][part]) for part in ("before", "after"))
    assert found["states"]["fused"] and np.abs(before - after).max() > 1e-3 * np.abs(before).max()


@pytest.mark.parametrize("route", [None, 1])
@pytest.mark.parametrize("channel", [None, 3])
def test_the_matrix_as_bytes(client, network, channel, route):
    model, x = network
    content = client.ask("rows", **(ASK | {"channel": channel, "route": route}))
    assert len(content) == 64 * 64 + 8 * 64
    want = mixing_matrix(model, x, "1.1", route, channel, skip=False).numpy()
    span = want.max(1, keepdims=True) - want.min(1, keepdims=True)
    assert (np.abs(matrix(content, 64, 64) - want) <= span / 255 * 0.501 + 1e-9).all(), "half a level of each row"
    one = client.ask("rows", **(ASK | {"channel": channel, "route": route, "query": [2, 5]}))
    assert one[:8] == content[8 * 21 : 8 * 22] and one[8:] == content[8 * 64 + 21 * 64 :][:64]


def test_rows_that_are_constant():
    found = matrix(quantised(torch.tensor([[2.0, 2.0], [0.0, -1.0]])), 2, 2)
    assert found.tolist() == [[2, 2], [0, -1]]


def test_a_class_token_is_left_out(client):
    vim = ASK | {"model": "vim_nano", "block": "3"}
    found = client.ask("block", **vim)
    assert (found["rows"], found["columns"], found["class_token"]) == (8, 8, True)
    assert values(client.ask("click", **vim, query=[7, 7])["combined"]).shape == (8, 8)
    assert len(client.ask("rows", **vim)) == 64 * 64 + 8 * 64


def test_a_large_map_goes_row_by_row(client, monkeypatch):
    monkeypatch.setattr(looks, "WHOLE", 63)
    assert not client.ask("block", **ASK)["whole"]
    assert "8 x 8 patches is too large to be sent; ask for one row" in client.refused("rows", **ASK)
    assert len(client.ask("rows", **ASK, query=[0, 0])) == 64 + 8


def test_the_receptive_field(client, network):
    model, x = network
    found = client.ask("field", **ASK, query=[2, 5])
    want = effective_receptive_field(model, x, 1, (2, 5))
    assert np.abs(values(found["map"]) / 255 - want.normalised().numpy()).max() < 0.501 / 255
    assert (found["stage"], found["side"], found["share"]) == (1, want.square(0.5).side, want.square(0.5).share)


@pytest.mark.parametrize(("mode", "size"), [("L", (48, 40)), ("RGBA", (48, 40)), ("I;16", (48, 40)), ("RGB", (7, 300))])
def test_images_of_every_kind(client, mode, size):
    name = client.upload(picture(size, mode))
    assert client.ask("open", image=name, **SMALL)["size"] == [32, 32]
    assert np.isfinite(values(client.ask("click", **(ASK | {"image": name}), query=[0, 0])["combined"])).all()


def test_a_scan_is_read_once(client, monkeypatch):
    name = client.upload(picture())
    calls, scan_of = [], looks.scan_of
    monkeypatch.setattr(looks, "scan_of", lambda *args: calls.append(args[2]) or scan_of(*args))
    for query in ([0, 0], [1, 5]):
        client.ask("click", **(ASK | {"image": name}), query=query)
    client.ask("block", **(ASK | {"image": name}))
    assert calls == ["1.1"]


WRONG = [
    ("open", {"image": "nothing"}, 404, "the image is no longer kept here; choose it again"),
    ("open", {"model": "vmamba_tny"}, 400, "unknown model 'vmamba_tny'; nearest: vmamba_tiny"),
    ("open", {"model": 3}, 400, "model must be a text"),
    ("open", {"model": "resnet18"}, 400, "unknown model 'resnet18'"),
    ("open", {"size": 8}, 400, "the image size must be from 32 to 512, got 8"),
    ("open", {"size": 100000}, 400, "the image size must be from 32 to 512, got 100000"),
    ("open", {"size": True}, 400, "size must be a whole number or null"),
    ("open", {"checkpoint": "x.pth"}, 404, "there is no such checkpoint"),
    ("block", {"block": "7.1"}, 400, "there is no block '7.1'; the network has 0.0, 0.1, 1.0, 1.1, 2.0, 2.1"),
    ("field", {"block": "7.1"}, 400, "there is no block '7.1'; the network has 0.0, 0.1, 1.0, 1.1, 2.0, 2.1"),
    ("block", {"channel": 64}, 400, "there is no channel 64: block 1.1 has 0 to 63"),
    ("click", {"channel": -1}, 400, "block 1.1 scans 64 channels, 0 to 63; there is no channel -1"),
    ("click", {"query": [8, 0]}, 400, "query (8, 0) is outside of the map of block 1.1, which has 8 x 8 patches"),
    ("field", {"query": [0, -1]}, 400, "target (0, -1) is outside of the feature map, which has 8 x 8 pixels"),
    ("click", {"query": [1.5, 0]}, 400, "query must be [row, column], two whole numbers"),
    ("click", {"query": None}, 400, "query must be [row, column], two whole numbers"),
    ("click", {"weights": "all"}, 400, "unknown weights 'all': choose one of scan, qk, decayed_qk, decay"),
    ("rows", {"route": 4}, 400, "block 1.1 has no route 4; choose 0 (rows forwards), 1 (columns forwards)"),
]


@pytest.mark.parametrize(("path", "change", "status", "words"), WRONG, ids=[f"{w[0]} {w[1]}" for w in WRONG])
def test_what_is_refused(client, path, change, status, words):
    assert words in client.refused(path, status, **(ASK | {"query": [0, 0]} | change))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the image cannot be used: empty file"),
        (b"hello", "the image cannot be used: not an image, or of a kind that Pillow cannot read"),
        (picture()[:300], "the image cannot be used: "),
    ],
    ids=["empty", "text", "cut off"],
)
def test_no_image(client, content, words):
    found = message(client.post("/api/images", content=content), 400)
    assert found.startswith(words) and "/" not in found.replace("and/or", "")


def test_uploads_are_bounded(sample):
    with Client(samples={"noise": sample}, max_bytes=10_000, max_pixels=3000) as client:
        assert "48 x 63 pixels, more than 0.003 million" in message(
            client.post("/api/images", content=picture((48, 63), "1")), 400
        )
        large = b"x" * 10_001
        words = "the file is larger than 0.00953674 MB"
        assert words in message(client.post("/api/images", content=large), 413)
        assert words in message(client.post("/api/images", content=iter([large])), 413)  # of no declared length


def test_only_the_last_uploads_are_kept(client):
    names = [client.upload(picture()) for _ in range(5)]
    assert len(set(names)) == 5
    assert "no longer kept" in client.refused("open", 404, image=names[0], **SMALL)
    assert client.ask("open", image=names[1], **SMALL)


def test_what_is_kept_of_a_dropped_upload_goes_with_it(client):
    first = client.upload(picture())
    client.ask("block", **(ASK | {"image": first}))
    for _ in range(4):
        client.upload(picture())
    assert "no longer kept" in client.refused("block", 404, **(ASK | {"image": first}))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"[" * 100_00, b"\xff"])
def test_no_question(client, body):
    assert "the request is no" in message(client.post("/api/click", content=body), 400)


def test_a_question_is_bounded(client):
    assert "larger than 16384 bytes" in message(client.post("/api/click", content=b" " * 16385), 413)


def test_no_such_address(client):
    assert message(client.get("/etc/passwd"), 404) == "Not Found"
    assert message(client.get("/api/click"), 405) == "Method Not Allowed"


def test_a_fault_shows_nothing(client, monkeypatch):
    def fail(*_):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(looks, "scan_of", fail)
    name = client.upload(picture())
    assert "fault of vssm lens" in client.refused("block", 500, **(ASK | {"image": name}))


def test_the_cascade_is_seen_route_by_route(tmp_path, sample, monkeypatch):
    from vssm.lens import networks

    made = networks.create_classifier
    monkeypatch.setattr(networks, "create_classifier", lambda name: made(name, scan="cascade"))
    with Client(samples={"noise": sample}) as client:
        found = client.ask("block", **ASK)
        assert found["cascade"] and found["states"] is None
        assert client.ask("click", **ASK, query=[1, 1])["combined"] is None
        assert "choose a route: 0 (rows forwards)" in client.refused("rows", **ASK)
        assert len(client.ask("rows", **ASK, route=2)) == 64 * 64 + 8 * 64


def test_a_click_does_not_wait_for_a_receptive_field(sample, monkeypatch):
    """The network is busy then; a scan that was read before is there all the same."""
    with Client(samples={"noise": sample}) as client:
        client.ask("block", **ASK)
        running, may_end = threading.Event(), threading.Event()
        measure = looks.effective_receptive_field
        monkeypatch.setattr(
            looks, "effective_receptive_field", lambda *args: running.set() or (may_end.wait(30) and measure(*args))
        )
        field = threading.Thread(target=lambda: client.ask("field", **ASK, query=[0, 0]))
        field.start()
        try:
            assert running.wait(30)
            click = threading.Thread(target=lambda: client.ask("click", **ASK, query=[0, 0]))
            click.start()
            click.join(20)
            assert not click.is_alive() and not may_end.is_set()
        finally:
            may_end.set()
            field.join()
