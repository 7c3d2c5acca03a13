"""Who may ask, and what is never told."""

from pathlib import Path

import pytest
import torch

import vssm
from tests.lens.client import SMALL, Client, message
from vssm.inference.checkpoint import read_checkpoint

RUNS = Path(__file__).parents[1] / "data" / "run_of_0.1"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "10.0.0.5", "", "[::2]"]
)
def test_another_name_of_this_machine(client, host):
    """A page of evil.example whose name was pointed here (DNS rebinding) sends its own name."""
    for found in (client.get("/", headers={"host": host}), client.get("/api/choices", headers={"host": host})):
        assert "answers to 127.0.0.1 only" in message(found, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8765", "localhost:80"])
def test_this_machine(client, host):
    assert client.get("/api/choices", headers={"host": host}).status_code == 200
    found = client.post(
        "/api/open", json={"image": "noise", **SMALL}, headers={"host": host, "origin": f"http://{host}"}
    )
    assert found.status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:81", ""])
def test_questions_of_other_pages(client, origin):
    found = client.post("/api/open", json={"image": "noise", **SMALL}, headers={"origin": origin})
    assert message(found, 403) == "only the page of this server may ask"
    assert message(client.post("/api/images", content=b"x", headers={"origin": origin}), 403)


def test_questions_without_an_origin(client):
    del client.headers["origin"]
    try:
        assert message(client.post("/api/open", json={}), 403) == "only the page of this server may ask"
    finally:
        client.headers["origin"] = "http://127.0.0.1"


def test_the_page_loads_nothing_else(client):
    found = client.get("/")
    policy = dict(part.split(" ", 1) for part in found.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in str(policy)
    assert "http://" not in found.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in found.text
    assert found.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in found.headers


@pytest.fixture
def folder(tmp_path):
    """A folder of checkpoints, beside a file that nobody may name."""
    inside = tmp_path / "weights"
    (inside / "empty_run").mkdir(parents=True)
    torch.manual_seed(5)
    state = vssm.create_model("vmamba_nano").state_dict()
    torch.save(state, inside / "good.pth")
    torch.save(state, tmp_path / "outside.pth")
    (inside / "damaged.pth").write_bytes((inside / "good.pth").read_bytes()[:5000])
    (inside / "link.pth").symlink_to(tmp_path / "outside.pth")
    (inside / "notes.txt").write_text("no checkpoint")
    return inside


def test_checkpoints_of_the_folder(folder, sample):
    with Client(checkpoints=folder, samples={"noise": sample}) as client:
        assert client.get("/api/choices").json()["checkpoints"] == ["damaged.pth", "good.pth"]
        trained = client.ask("open", image="noise", **(SMALL | {"checkpoint": "good.pth"}))
        random = client.ask("open", image="noise", **SMALL)
        assert (trained["random"], random["random"]) == (False, True)
        assert trained["classes"] != random["classes"]


OUTSIDE = ["../outside.pth", "link.pth", "/etc/passwd", "notes.txt", "empty_run", "..", ".", "", "good.pth/../good.pth"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_leads_out_of_the_folder(folder, sample, name):
    with Client(checkpoints=folder, samples={"noise": sample}) as client:
        found = client.refused("open", 404, image="noise", **(SMALL | {"checkpoint": name}))
        assert found == "there is no such checkpoint in the folder that was given at the start"


def test_no_path_is_told(folder, sample):
    with Client(checkpoints=folder, samples={"noise": sample}) as client:
        wrong = [
            client.refused("open", image="noise", **(SMALL | {"checkpoint": "damaged.pth"})),
            client.refused("open", image="noise", **(SMALL | {"checkpoint": "good.pth", "model": "vim_nano"})),
        ]
        (folder / "good.pth").unlink()
        wrong.append(client.refused("open", 404, image="noise", **(SMALL | {"checkpoint": "good.pth", "size": 64})))
        assert wrong[0].startswith("damaged.pth") and wrong[1].startswith("good.pth")
        for text in (*wrong, client.get("/api/choices").text):
            assert str(folder.parent) not in text and "/" not in text.replace("and/or", ""), text


def test_the_folder_must_be_there(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"--checkpoints takes a folder of checkpoints or runs"):
        Client(checkpoints=tmp_path / "none")


def test_a_run_directory(sample):
    """A run of `vssm fit` by the name of its directory; the checkpoint tells the model, and its classes."""
    with Client(checkpoints=RUNS, samples={"noise": sample}) as client:
        assert client.get("/api/choices").json()["checkpoints"] == ["run"]
        found = client.ask("open", image="noise", model="vmamba_tiny", checkpoint="run", size=None)
        stored = read_checkpoint(RUNS / "run")
        assert (found["model"], found["random"]) == (stored.settings.model.name, False)
        assert {one["name"] for one in found["classes"]} == set(stored.classes)
        assert found["size"] == list(stored.preprocess.input_size[1:])
