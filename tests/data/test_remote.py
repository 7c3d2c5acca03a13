"""Shards behind a URL: an http server with ranges, one without, and one that fails."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from vssm.data.image import UnreadableImage
from vssm.data.loaders import evaluation_loader
from vssm.data.packed import load_packed
from vssm.data.preprocess import Preprocess
from vssm.data.shards import reading
from vssm.data.shards.dataset import ShardImages
from vssm.data.shards.pack import pack
from vssm.settings import DataSettings

pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(root, out, shard_bytes=8_000)
    return out


@contextmanager
def served(folder, ranges=True, failures=0):
    """A server of a folder's files that answers the first `failures` requests for shards with status 503."""
    remaining, asked = [failures], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Range")))
            path = folder / self.path.lstrip("/")
            if path.suffix == ".tar" and remaining[0] > 0:
                remaining[0] -= 1
                self.send_error(503)
                return
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "") if ranges else None
            if wanted:
                content = content[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_as_from_disk(packed, workers):
    preprocess = Preprocess((3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    with served(packed) as (url, asked):
        local, remote = (load_packed(DataSettings("shards", root=root), preprocess) for root in (str(packed), url))
        assert remote.classes == local.classes and remote.fingerprints() == local.fingerprints()
        remote.val[0]  # a connection of this process, which the workers must not use
        ours, theirs = (list(evaluation_loader(one.val, 4, workers=workers)) for one in (local, remote))
        assert len(ours) == 3 and sum(len(batch.targets) for batch in theirs) == 12
        for one, other in zip(ours, theirs, strict=True):
            assert (one.images == other.images).all() and (one.targets == other.targets).all()
        assert all(given for path, given in asked if path.endswith(".tar")), "ranges, not whole shards"


def test_what_a_server_may_do(packed, monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "PAUSE", 0.0)
    with served(packed / "train", failures=2) as (url, asked):
        found = ShardImages(url, pil_to_tensor)
        found[0]
        assert len([path for path, _ in asked if path.endswith(".tar")]) == 3, "the third try"
    with served(packed / "train", failures=100) as (url, _), pytest.raises(UnreadableImage, match="tried 3 times"):
        ShardImages(url, pil_to_tensor)[0]
    with served(packed / "train", ranges=False) as (url, _), pytest.raises(UnreadableImage, match="bytes came instead"):
        ShardImages(url, pil_to_tensor)[0]
    with served(tmp_path) as (url, _), pytest.raises(FileNotFoundError, match=r"has no shards\.json; expected a fold"):
        ShardImages(url, pil_to_tensor)
    with pytest.raises(ValueError, match="fsspec cannot open it"):
        ShardImages("nosuch://bucket/shards", pil_to_tensor)
