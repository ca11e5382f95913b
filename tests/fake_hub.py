"""A local server that speaks the few calls a hub repository is read by, range requests included."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"code",
    "consolidated.safetensors": b"weights again",
    "original/model.safetensors": b"weights once more",
}


class FakeHub(ThreadingHTTPServer):
    """Serves one repository, org/model, and keeps what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str] = []
        self.sent: list[tuple[str, int]] = []  # path and bytes of each body
        self.files = dict(FILES)

    @property
    def endpoint(self) -> str:
        """Address for Environment.hub_endpoint."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """A hub whose repository has these files."""
    server = FakeHub()
    server.files = files
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        if path in (f"/api/models/org/model/revision/{name}" for name in ("main", "v1", COMMIT)):
            self._answer(json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith("/api/models/org/model/revision/"):
            self._answer(b"{}", status=404, headers={"X-Error-Code": "RevisionNotFound"})
        elif path == f"/api/models/org/model/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.server.files.items()
            ]
            self._answer(json.dumps(tree).encode())
        elif path.removeprefix(f"/org/model/resolve/{COMMIT}/") in self.server.files:
            content = self.server.files[path.removeprefix(f"/org/model/resolve/{COMMIT}/")]
            self._answer_file(content)
        elif path.startswith("/org/model/resolve/"):
            self._answer(b"{}", status=404, headers={"X-Error-Code": "EntryNotFound"})
        elif "/gated/" in path:
            self._answer(b"{}", status=403, headers={"X-Error-Code": "GatedRepo"})
        else:
            self._answer(b"{}", status=404, headers={"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _answer_file(self, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range") or "")
        if wanted is None:
            self._answer(content, headers=headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(content[first : last + 1], status=206, headers=headers)

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent.append((urlsplit(self.path).path, len(content)))  # before its reader can look
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output quiet."""
