"""A client that asks as the page does, and reads its answers."""

import base64

import numpy as np
from starlette.testclient import TestClient

from vssm.lens.server import create_app

SMALL = {"model": "vmamba_nano", "checkpoint": None, "size": 32}
LOOK = SMALL | {"block": "1.1", "weights": "scan", "channel": None}


class Client(TestClient):
    def __init__(self, origin="http://127.0.0.1", **options):
        super().__init__(create_app(**options), base_url="http://127.0.0.1", raise_server_exceptions=False)
        self.headers["origin"] = origin

    def ask(self, path, **fields):
        """A question that is answered."""
        found = self.post(f"/api/{path}", json=fields)
        assert found.status_code == 200, found.text
        return found.json() if found.headers["content-type"] == "application/json" else found.content

    def refused(self, path, status=400, **fields):
        """The message of a question that is refused."""
        found = self.post(f"/api/{path}", json=fields)
        return message(found, status)

    def upload(self, content):
        found = self.post("/api/images", content=content)
        assert found.status_code == 200, found.text
        return found.json()["image"]


def message(found, status):
    assert found.status_code == status, found.text
    assert list(found.json()) == ["error"]
    return found.json()["error"]


def values(encoded):
    kind = "<f4" if "data" in encoded else "u1"
    content = base64.b64decode(encoded.get("data") or encoded["bytes"])
    return np.frombuffer(content, kind).reshape(encoded["shape"])


def matrix(content, rows, columns):
    """What `quantised` wrote, as the page reads it."""
    ranges = np.frombuffer(content[: 8 * rows], "<f4").reshape(rows, 2)
    levels = np.frombuffer(content[8 * rows :], "u1").reshape(rows, columns)
    return ranges[:, :1] + levels / 255 * (ranges[:, 1:] - ranges[:, :1])
