"""pretrained=True against a local server: fetching, the recorded hash, and refusals."""

import functools
import http.server
import json
import sys
import threading

import pytest
import timm
import torch

import vssm
from vssm.weights import CATALOG, DownloadError, download
from vssm.weights.download import RECORD, sha256
from vssm.weights.rename import VMAMBA, to_official

PUBLISHERS = ("https://github.com/MzeroMiko/VMamba/releases/download/%23v", "https://huggingface.co/hustvl/Vim-")


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if "cut" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            return
        super().do_GET()


@pytest.fixture
def site(tmp_path):
    """(folder that is served, its address)."""
    folder = tmp_path / "site"
    (folder / "#v2cls").mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_hash_is_recorded_and_checked(site, tmp_path):
    folder, address = site
    (folder / "#v2cls" / "file.pth").write_bytes(b"weights")
    cache = tmp_path / "cache"
    local = download(f"{address}/%23v2cls/file.pth", cache)
    assert local == cache / "v2cls-file.pth" and local.read_bytes() == b"weights"
    record = json.loads((cache / RECORD).read_text())
    assert record["v2cls-file.pth"]["sha256"] == sha256(local)
    assert _visible(cache) == [RECORD, "v2cls-file.pth"]

    (folder / "#v2cls" / "file.pth").write_bytes(b"others")
    assert download(f"{address}/%23v2cls/file.pth", cache).read_bytes() == b"weights"  # the copy is used
    local.write_bytes(b"changed")
    with pytest.raises(DownloadError, match="was recorded when it was first downloaded"):
        download(f"{address}/%23v2cls/file.pth", cache)
    local.unlink()
    with pytest.raises(DownloadError, match="was recorded"):  # the server's file is another one now
        download(f"{address}/%23v2cls/file.pth", cache)


def test_failures_leave_nothing_behind(site, tmp_path, monkeypatch):
    folder, address = site
    cache = tmp_path / "cache"
    with pytest.raises(DownloadError, match="404"):
        download(f"{address}/none.pth", cache)
    with pytest.raises(DownloadError, match="after 10 of 1000 bytes"):
        download(f"{address}/cut.pth", cache)
    with pytest.raises(DownloadError, match="cannot download"):
        download("http://127.0.0.1:9/file.pth", cache)
    with pytest.raises(DownloadError, match="not an http"):
        download("file:///etc/hostname", cache)
    (folder / "big.pth").write_bytes(b"x" * 100)
    monkeypatch.setattr(sys.modules["vssm.weights.download"], "MAX_BYTES", 99)
    with pytest.raises(DownloadError, match="larger than 99 bytes"):
        download(f"{address}/big.pth", cache)
    assert _visible(cache) == [] and not list(cache.glob(".*.part*"))


def _visible(folder):
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def test_a_damaged_record_is_named(site, tmp_path):
    folder, address = site
    (folder / "file.pth").write_bytes(b"weights")
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(DownloadError, match="is damaged"):
        download(f"{address}/file.pth", tmp_path)


def test_pretrained(site, tmp_path):
    folder, address = site
    source = vssm.create_model("vmamba_nano").eval()
    torch.save({"model": to_official(source.state_dict(), VMAMBA)}, folder / "nano.pth")
    options = {"pretrained": True, "pretrained_cfg_overlay": {"url": f"{address}/nano.pth"}, "cache_dir": tmp_path}
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model("vmamba_nano", **options).eval()
    torch.testing.assert_close(model(x), source(x))
    assert "state_dict" not in model.pretrained_cfg

    classes = timm.create_model("vmamba_nano", num_classes=4, **options).eval()
    torch.testing.assert_close(classes.forward_features(x), source.forward_features(x))
    assert classes(x).shape == (2, 4)

    grey = timm.create_model("vmamba_nano", in_chans=1, **options).eval()
    torch.testing.assert_close(grey.stem.conv1.weight, source.stem.conv1.weight.sum(1, keepdim=True))

    backbone = timm.create_model("vmamba_nano", features_only=True, **options).eval()
    torch.testing.assert_close(backbone(x), source.forward_intermediates(x, intermediates_only=True))
    assert "state_dict" not in backbone.pretrained_cfg

    local = {"file": str(folder / "nano.pth")}
    model = timm.create_model("vmamba_nano", pretrained=True, pretrained_cfg_overlay=local).eval()
    torch.testing.assert_close(model(x), source(x))


def test_pretrained_refuses_a_page(site, tmp_path):
    folder, address = site
    (folder / "page.pth").write_text("<html>moved</html>")
    with pytest.raises(ValueError, match="is a web page, not weights"):
        timm.create_model(
            "vmamba_nano", pretrained=True, pretrained_cfg_overlay={"url": f"{address}/page.pth"}, cache_dir=tmp_path
        )


@pytest.mark.parametrize("name", ["spatial_mamba_tiny", "spatial_mamba_small", "spatial_mamba_base"])
def test_weights_without_an_address(name):
    with pytest.raises(
        RuntimeError,
        match=rf"no direct address. Download the file from https://github.com/EdwardChasel/.*load_checkpoint\(.*{name}",
    ):
        timm.create_model(name, pretrained=True)


def test_no_weights_at_all():
    with pytest.raises(RuntimeError, match="no trained weights are published for vmamba_nano"):
        timm.create_model("vmamba_nano", pretrained=True)


def test_catalogue_and_registry_agree():
    for name, weights in CATALOG.items():
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.url == weights.url
        assert weights.url is None or weights.url.startswith(PUBLISHERS)
        assert cfg.license in ("mit", "apache-2.0")
    assert timm.get_pretrained_cfg("vmamba_tiny").url == CATALOG["vmamba_tiny_s1l8"].url
    assert len({w.url for w in CATALOG.values() if w.url}) == 12
