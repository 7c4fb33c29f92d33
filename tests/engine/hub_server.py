"""A directory served over HTTP as the Hugging Face hub serves a model, for its real client to fetch from."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + 34 * "0"


class Hub:
    """Serves `directory` as the model `name` on a free port of this machine while the block lasts."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.gets: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fetched(self) -> list[str]:
        """Names of the files whose contents were asked for, each as often as it was."""
        return list(self.gets)

    def answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        path = request.path.partition("?")[0]
        file = self.directory / path.rpartition("/")[2]
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith(f"/api/models/{self.name}"):
            body, kind = self._listing(path), "application/json"
        elif path.startswith(f"/{self.name}/resolve/") and file.is_file():
            body, kind = file.read_bytes(), "application/octet-stream"
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            if with_body:
                self.gets.append(file.name)
        else:
            request.send_response(404)
            request.send_header("X-Error-Code", "RepoNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(200)
        for key, value in (headers | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            request.send_header(key, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body)

    def _listing(self, path: str) -> bytes:
        files = sorted(file.name for file in self.directory.iterdir())
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": n, "size": (self.directory / n).stat().st_size, "oid": n} for n in files
            ]
            return json.dumps(entries).encode()
        siblings = [{"rfilename": name} for name in files]
        return json.dumps({"id": self.name, "modelId": self.name, "sha": COMMIT, "siblings": siblings}).encode()
