"""A server of the shape of the Hugging Face Hub, in memory: repositories, uploads through LFS or Xet, commits."""

from __future__ import annotations

import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Attributes: repos: (kind, name) -> {"private": bool, "files": name -> bytes}; tokens: the headers seen.

    With Xet, it says that it has all chunks already, so that no content arrives; `shards` counts what is registered.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuse = 0  # status of every answer, if not 0
        self.shards = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def _repo(self) -> tuple[str, str]:
        """Kind and name in /api/datasets/OWNER/NAME/... or /datasets/OWNER/NAME.git/..."""
        parts = self.path.partition("?")[0].strip("/").removeprefix("api/").split("/")
        kind = parts.pop(0).removesuffix("s") if parts[0] in ("datasets", "models") else "model"
        return kind, f"{parts[0]}/{parts[1].removesuffix('.git')}"

    def _begin(self) -> bool:
        if not self.path.startswith(("/v1/", "/v2/")) and ("/objects/" not in self.path or self.command != "PUT"):
            self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuse:
            self._body()
            self._answer({"error": "refused"}, self.server.refuse)
        return not self.server.refuse

    def do_GET(self) -> None:
        if not self._begin():
            return
        if self.path.startswith("/v1/"):  # a chunk that other files may share
            self._answer({"error": "no such chunk"}, 404)
            return
        if "/xet-write-token/" in self.path:
            self._answer(
                {"casUrl": self.server.url, "accessToken": "t", "exp": int(time.time()) + 3600},
                200,
                {
                    "X-Xet-Cas-Url": self.server.url,
                    "X-Xet-Access-Token": "t",
                    "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
                },
            )
            return
        repo = self.server.repos.get(self._repo())
        if repo is None:
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        kind, name = self._repo()
        files = [{"rfilename": file} for file in repo["files"]]
        self._answer({"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": files, "tags": []})

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        if not self._begin():
            return
        body, path = self._body(), self.path.partition("?")[0]
        if path.startswith(("/v1/", "/v2/")):
            self.server.shards += path == "/v1/shards"
            self._answer({"was_inserted": True, "result": 1}, 404 if path.startswith("/v2/") else 200)
        elif path == "/api/repos/create":
            row = json.loads(body)
            name = f"{row.get('organization') or 'me'}/{row['name']}"
            private = row.get("visibility") == "private" or bool(row.get("private"))
            self.server.repos[row.get("type", "model"), name] = {"private": private, "files": {}}
            self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            rows = json.loads(body)["files"]
            large = [row["path"].endswith((".safetensors", ".parquet")) for row in rows]
            modes = ["lfs" if one else "regular" for one in large]
            answers = [
                {"path": row["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for row, mode in zip(rows, modes, strict=True)
            ]
            self._answer({"files": answers})
        elif path.endswith("/objects/batch"):
            rows = json.loads(body)["objects"]
            objects = [
                {**row, "actions": {"upload": {"href": f"{self.server.url}/objects/{row['oid']}", "header": {}}}}
                for row in rows
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit(body)
        else:
            self._answer({"error": f"no such path: {path}"}, 404)

    def _commit(self, body: bytes) -> None:
        files = self.server.repos[self._repo()]["files"]
        for line in filter(None, body.split(b"\n")):
            row = json.loads(line)
            if row["key"] == "file":
                files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                files[row["value"]["path"]] = self.server.objects.get(row["value"]["oid"], b"in Xet")
        kind, name = self._repo()
        place = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}/commit/1"
        self._answer({"commitUrl": place, "commitOid": "1" * 40, "success": True})


@contextmanager
def serve_hub():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
