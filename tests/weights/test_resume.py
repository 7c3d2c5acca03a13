"""Downloads that were interrupted, other bytes than expected, offline: against a local server with Range requests."""

import hashlib
import http.server
import json
import threading

import pytest

from vssm.weights import CATALOG, DownloadError, download, fetch_published, find_published, list_published
from vssm.weights.download import RECORD, cached_path
from vssm.weights.published import named_file
from vssm_cli.command import main

CONTENT = bytes(range(256)) * 4000
OTHER = CONTENT[::-1]


class _Site(http.server.ThreadingHTTPServer):
    """One file with an ETag, of which at most `limit` bytes are sent per answer; /moved redirects as Hugging Face."""

    daemon_threads = True
    content, etag, limit, ranges = CONTENT, '"one"', None, True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str | None] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/%23v2cls/file.pth"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Site

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        site = self.server
        if "moved" in self.path:
            self.send_response(302)
            self.send_header("Location", site.url)
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.end_headers()
            return
        asked = self.headers.get("Range")
        site.asked.append(asked)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if not site.ranges or self.headers.get("If-Range", site.etag) != site.etag:
            begin = 0
        if begin >= len(site.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.content)}")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(site.content) - 1}/{len(site.content)}")
        self.send_header("Content-Length", str(len(site.content) - begin))
        self.send_header("ETag", site.etag)
        self.end_headers()
        self.wfile.write(site.content[begin : None if site.limit is None else begin + site.limit])


@pytest.fixture
def site():
    server = _Site()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch):
    for name in ("VSSM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def _cut(site, cache, after):
    site.limit = after
    with pytest.raises(
        DownloadError, match=rf"ended after {after} of {len(CONTENT)} bytes; try again, and it goes on th"
    ):
        download(site.url, cache)
    site.limit = None


def test_a_download_goes_on_where_it_was_cut(site, tmp_path):
    _cut(site, tmp_path, 300_000)
    assert not cached_path(site.url, tmp_path).exists() and not (tmp_path / RECORD).exists()
    seen = []
    stated = hashlib.sha256(CONTENT).hexdigest()
    path = download(site.url, tmp_path, stated, lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "v2cls-file.pth" and path.read_bytes() == CONTENT
    assert site.asked == [None, "bytes=300000-"] and seen[-1] == (len(CONTENT), len(CONTENT)) and seen[0][0] > 300_000
    assert not list(tmp_path.glob(".*.part*"))
    assert (
        json.loads((tmp_path / RECORD).read_text())["v2cls-file.pth"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    )
    assert download(site.url, tmp_path) == path and len(site.asked) == 2  # from the cache


def test_all_was_there_but_the_end(site, tmp_path):
    """The process died between the last byte and the new name."""
    _cut(site, tmp_path, 300_000)
    (tmp_path / ".v2cls-file.pth.part").write_bytes(CONTENT)
    assert download(site.url, tmp_path).read_bytes() == CONTENT
    assert site.asked[1:] == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("change", ["another file", "no ranges", "a torn note"])
def test_a_beginning_of_another_file_is_not_continued(site, tmp_path, change):
    _cut(site, tmp_path, 300_000)
    if change == "another file":
        site.content, site.etag = OTHER, '"two"'
    elif change == "no ranges":
        site.ranges = False
    else:
        (tmp_path / ".v2cls-file.pth.part.json").write_text("{")
    assert download(site.url, tmp_path).read_bytes() == site.content


def test_a_wrong_hash_keeps_nothing_and_removes_nothing(site, tmp_path):
    mine = tmp_path / "v2cls-other.pth"
    mine.write_bytes(b"mine")
    right, wrong = (hashlib.sha256(content).hexdigest() for content in (CONTENT, OTHER))
    with pytest.raises(DownloadError, match=f"has SHA-256 {right}, but its publisher states {wrong}; it was not kept"):
        download(site.url, tmp_path, wrong)
    assert [p.name for p in tmp_path.iterdir() if p.name[0] != "." or "part" in p.name] == ["v2cls-other.pth"]
    path = download(site.url, tmp_path, right)
    path.write_bytes(OTHER)
    with pytest.raises(DownloadError, match=f"has SHA-256 {wrong}, but its publisher states {right}; it was left"):
        download(site.url, tmp_path, right)
    assert path.read_bytes() == OTHER and mine.read_bytes() == b"mine"


def test_the_hash_that_hugging_face_states(site, tmp_path):
    moved = site.url.replace("file.pth", "moved.pth")
    assert download(moved, tmp_path).read_bytes() == CONTENT
    cached_path(moved, tmp_path).unlink()
    site.content, site.etag = OTHER, '"two"'
    with pytest.raises(DownloadError, match="but its publisher states " + hashlib.sha256(CONTENT).hexdigest()):
        download(moved, tmp_path)
    assert not cached_path(moved, tmp_path).exists()


def test_too_large(site, tmp_path):
    with pytest.raises(DownloadError, match=f"larger than 1000 bytes .it has {len(CONTENT)}.; these models are not"):
        download(site.url, tmp_path, max_bytes=1000)
    assert not list(tmp_path.glob(".*.part*"))


@pytest.mark.parametrize("name", ["VSSM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(site, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(DownloadError, match=f"v2cls-file.pth is not in the cache, and {name} forbids downloads; fetch"):
        download(site.url, tmp_path)
    assert site.asked == []
    (tmp_path / "v2cls-file.pth").write_bytes(CONTENT)  # put there by hand
    assert download(site.url, tmp_path).read_bytes() == CONTENT
    monkeypatch.setenv(name, "0")
    (tmp_path / "v2cls-file.pth").unlink()
    assert download(site.url, tmp_path).read_bytes() == CONTENT and len(site.asked) == 1


def test_several_at_once_fetch_once(site, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(download(site.url, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(site.asked) == 1


# ---- the catalogue and the command ----


def test_what_is_published():
    published = list_published()
    assert len(CATALOG) == 15 and len(published) == 35 and len({w.url for w in published.values() if w.url}) == 32
    assert find_published("vmamba_tiny") == ("vmamba_tiny_s1l8", CATALOG["vmamba_tiny_s1l8"])
    full, found = find_published("catalog:vmamba_small/upernet_160k")
    assert full == "vmamba_small_s2l15/upernet_160k" and found.metrics == {"mIoU": 50.6}
    assert found.url is not None and found.url.endswith(
        "v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_small_iter_144000.pth"
    )
    with pytest.raises(ValueError, match="no weights 'vmamba_tinny'; nearest: vmamba_tiny"):
        find_published("vmamba_tinny")


@pytest.fixture
def served(site, monkeypatch):
    """vmamba_tiny_s1l8 as if it were published on the site."""
    from dataclasses import replace

    monkeypatch.setitem(CATALOG, "vmamba_tiny_s1l8", replace(CATALOG["vmamba_tiny_s1l8"], url=site.url))
    return site


def test_list_and_get(served, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["weights", "get", "vmamba_tiny", "--cache", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "v2cls-file.pth")]
    assert main(["weights", "list", "vmamba_tiny*", "spatial*", "--cache", str(tmp_path)]) == 0
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line[:1] == "│"}
    assert len(lines) == 2 + 6 + 3
    assert "top-1 82.6" in lines["vmamba_tiny_s1l8"] and "file.pth (in the cache)" in lines["vmamba_tiny_s1l8"]
    assert "box AP 47.4, mask AP 42.7" in lines["vmamba_tiny_s2l5/mask_rcnn_1x"] and "mit" in lines["vmamba_tiny_s2l5"]
    assert "by hand: https://github.com/EdwardChasel/Spatial-Mamba" in lines["spatial_mamba_tiny"]


def test_a_file_without_an_address_is_to_be_fetched_by_hand(capsys):
    assert main(["weights", "get", "spatial_mamba_tiny"]) == 1
    assert "no direct address. Download the file from https://github.com/EdwardChasel/" in capsys.readouterr().err
    assert main(["weights", "get", "vmamba_tinny"]) == 1
    assert main(["weights", "list", "none*"]) == 1
    assert "the catalogue has no weights 'none*'" in capsys.readouterr().err
    assert main(["weights", "gett"]) == 2
    assert "no action 'gett'; nearest: get; list or get" in capsys.readouterr().err
    assert main(["weights", "get"]) == 2


def test_a_name_in_place_of_a_file(served, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "v2cls-file.pth"
    assert named_file("catalog:vmamba_tiny") == path == fetch_published("vmamba_tiny") and path.exists()
    assert named_file("some/file.pth").name == "file.pth"
