"""Ray's dashboard over HTTP, with a Serve behind it whose applications come up, or not, as a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serve_app.cli.clock import Clock

Config = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """An application at one look: its status, and what Serve says of its deployment."""

    status: str
    message: str = ""


DEPLOYING, RUNNING = Stage("DEPLOYING"), Stage("RUNNING")


@dataclass
class FakeServe:
    """Applications: each look at one shows the next of its stages, then the last again; without any it is gone."""

    stages_of: Callable[[Config], list[Stage]] = lambda _config: [DEPLOYING, RUNNING]
    token: str | None = None  # None: it asks for none
    answers: list[int] = field(default_factory=list)  # statuses that the next requests get, whatever they are
    location: str = ""  # where a redirect among those leads
    submitted: list[dict[str, Any]] = field(default_factory=list)
    on_look: Callable[[], None] = lambda: None
    nodes: list[dict[str, Any]] = field(default_factory=list)  # as the state API lists them
    groups: list[dict[str, Any]] = field(default_factory=list)
    _configs: dict[str, Config] = field(default_factory=dict)
    _stages: dict[str, list[Stage]] = field(default_factory=dict)
    _deployed_s: dict[str, float] = field(default_factory=dict)

    def submit(self, content: dict[str, Any]) -> str:
        """What a PUT does; nothing is to be said."""
        self.submitted.append(content)
        self._configs = {config["name"]: config for config in content["applications"]}
        self._stages = {name: list(self.stages_of(config)) for name, config in self._configs.items()}
        self._deployed_s = dict.fromkeys(self._configs, float(len(self.submitted)))
        return ""

    def look(self) -> dict[str, Any]:
        """What a GET shows."""
        self.on_look()
        return {
            "applications": {name: self._application(name) for name in self._configs if self._stages[name]},
            "target_capacity": None,
        }

    def _application(self, name: str) -> dict[str, Any]:
        stages = self._stages[name]
        stage = stages.pop(0) if len(stages) > 1 else stages[0]
        is_healthy = stage.status == "RUNNING"
        router = {
            "name": "Router",
            "status": "HEALTHY" if is_healthy else "UPDATING",
            "message": stage.message,
            "target_num_replicas": 1,
            "replicas": [{"state": "RUNNING" if is_healthy else "STARTING", "node_id": "n"}],
        }
        return {
            "name": name,
            "status": stage.status,
            "message": "Failed to update the deployments ['Router']." if stage.status == "DEPLOY_FAILED" else "",
            "last_deployed_time_s": self._deployed_s[name],
            "deployed_app_config": self._configs[name],
            "deployments": {"Router": router},
        }


@contextmanager
def fake_dashboard(serve: FakeServe) -> Iterator[str]:
    """Answers for that Serve at the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/v0/"):
                rows = serve.nodes if self.path.startswith("/api/v0/nodes") else serve.groups
                self._send(200, json.dumps({"result": True, "data": {"result": {"total": 1, "result": rows}}}).encode())
                return
            self._answer(lambda: json.dumps(serve.look()))

        def do_PUT(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(lambda: serve.submit(content))

        def _answer(self, act: Callable[[], str]) -> None:
            status, given = 200, self.headers["Authorization"]
            if serve.answers:
                status = serve.answers.pop(0)
            elif serve.token is not None and given != f"Bearer {serve.token}":
                status = 401 if given is None else 403
            self._send(status, (act() if status == 200 else "Traceback\nit is why").encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", serve.location)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nowhere."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class FakeTime:
    """A clock that stands still but for what is slept."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    @property
    def clock(self) -> Clock:
        """To be handed in."""
        return Clock(lambda: self.slept_s, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds
