"""A stand-in of the Hugging Face Hub: the requests of huggingface_hub for create_repo, upload_folder and downloads.

Repositories are kept in memory: a list of commits, each {path: bytes}. Files that end in .safetensors and .bin go by
the LFS protocol (batch, PUT, verify), the others inline in the commit, as the Hub decides too.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
LICENCE = "cc-by-4.0"  # the only one that it knows
LFS = (".safetensors", ".bin")


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.messages: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repos[repo][-1]

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self) -> list[str]:
        self.server.requests.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path).strip("/").split("/")

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer(401, {"error": "Invalid credentials in Authorization header"})
        return False

    def do_POST(self):
        body = self._body()
        path = self._route()
        if path == ["api", "validate-yaml"]:
            metadata = json.loads(body)["content"].split("---")[1]
            known = f"license: {LICENCE}" in metadata
            faults = {} if known else {"errors": [{"message": '"license" is unknown'}]}
            return self._answer(200 if known else 400, faults)
        if not self._may_write():
            return
        if path == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            url = {"url": f"{self.server.address}/{repo}", "name": repo, "id": "1"}
            if repo in self.server.repos:
                return self._answer(409, url | {"error": "You already created this model repo"})
            self.server.repos[repo] = [{}]
            self.server.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self._answer(200, url)
        if path[3:] == ["info", "lfs", "objects", "batch"] or path[2:] == ["info", "lfs", "objects", "batch"]:
            objects = json.loads(body)["objects"]
            for one in objects:
                if one["oid"] not in self.server.uploads:
                    href = f"{self.server.address}/put/{one['oid']}"
                    verify = f"{self.server.address}/verify/{one['oid']}"
                    one["actions"] = {"upload": {"href": href}, "verify": {"href": verify}}
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if path[0] == "verify":
            asked = json.loads(body)
            fits = len(self.server.uploads[asked["oid"]]) == asked["size"]
            return self._answer(200 if fits else 422, {})
        repo, action = "/".join(path[2:4]), path[4]
        if repo not in self.server.repos:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if action == "preupload":
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        assert action == "commit", self.path
        return self._commit(repo, body)

    def _commit(self, repo: str, body: bytes) -> None:
        files = dict(self.server.files(repo))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        self.server.repos[repo].append(files)
        oid = _sha(repo, len(self.server.repos[repo]) - 1)
        url = f"{self.server.address}/{repo}/commit/{oid}"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": oid})

    def do_PUT(self):
        body, path = self._body(), self._route()
        assert path[0] == "put"
        if hashlib.sha256(body).hexdigest() != path[1]:
            return self._answer(400)
        self.server.uploads[path[1]] = body
        self._answer(200)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self._route()
        if path[:1] == ["api"]:
            return self._api(path)
        repo, name = "/".join(path[:2]), "/".join(path[4:])
        if repo not in self.server.repos:
            return self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if name not in self.server.files(repo):
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        data = self.server.files(repo)[name]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": _sha(repo, len(self.server.repos[repo]) - 1)}
        self._answer(200, data, headers)

    def _api(self, path: list[str]) -> None:
        repo = "/".join(path[2:4])
        if path[1] != "models" or repo not in self.server.repos:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        sha = _sha(repo, len(self.server.repos[repo]) - 1)
        files = [{"rfilename": name} for name in self.server.files(repo)]
        if path[4:5] == ["tree"]:
            return self._answer(200, [
                {"type": "file", "path": name, "size": len(data), "oid": sha}
                for name, data in self.server.files(repo).items()
            ])  # fmt: skip
        self._answer(200, {"id": repo, "sha": sha, "siblings": files, "private": False, "tags": []})


def _sha(repo: str, commit: int) -> str:
    return hashlib.sha1(f"{repo} {commit}".encode()).hexdigest()
