"""`serve run` of one model, or another server, for the time of a measurement."""

import socket
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from serve_app.cli.serve_command import child_environment
from serve_app.cli.serve_process import ServeProcess

ROOT = Path(__file__).resolve().parents[1]
BUILD_DIR = ROOT / "build" / "bench"
THROUGHPUT_PROFILE = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}

_MAX_STARTS = 3  # a raylet has 30 s to come up, and on a busy machine it sometimes misses them
_START_S = 300.0
_POLL_S = 0.25
_NUM_SHOWN_LINES = 20


class ServeFailedError(RuntimeError):
    """`serve run` did not come up."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that answers at `url`; all processes that serve it are in one session."""

    url: str
    session_id: int


class _Session(ServeProcess):
    @property
    def session_id(self) -> int:
        """The session that it and all that it starts are in."""
        return self._process.pid


@contextmanager
def serving(
    import_path: str,
    model_args: Mapping[str, object],
    profile: Mapping[str, str],
    grpc_options: Mapping[str, object] | None = None,
) -> Iterator[ServedModel]:
    """One Gateway and one model, under `profile`'s environment variables. Raises ServeFailedError."""
    port = free_port()
    serve_file = _serve_file(port, import_path, model_args)
    if grpc_options is not None:
        serve_file["grpc_options"] = dict(grpc_options)
    with running(["serve", "run"], port, profile, serve_file) as served:
        yield served


@contextmanager
def running(
    command: Sequence[str], port: int, environment: Mapping[str, str], serve_file: Mapping[str, object] | None = None
) -> Iterator[ServedModel]:
    """A server that answers GET /health at `port`; the command gets the Serve file's path. Raises ServeFailedError.

    command: a program of this environment, or the path of another.
    """
    name = f"serve-{port}"
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    words = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    if serve_file is not None:
        path = BUILD_DIR / f"{name}.yaml"
        path.write_text(yaml.safe_dump(serve_file))
        words.append(str(path))
    variables = {**child_environment(), "PYTHONPATH": str(ROOT), **environment}
    url = f"http://127.0.0.1:{port}"
    last_lines: list[str] = []
    for _ in range(_MAX_STARTS):
        process = _Session(words, ROOT, variables, BUILD_DIR / f"{name}.log")
        try:
            if _is_up(process, url):
                yield ServedModel(url, process.session_id)
                return
            last_lines = process.new_lines()[-_NUM_SHOWN_LINES:]
        finally:
            process.end()
    raise ServeFailedError("\n".join([f"{' '.join(words)} did not come up:", *last_lines]))


def _serve_file(port: int, import_path: str, model_args: Mapping[str, object]) -> dict[str, object]:
    gateway = {"name": "gateway", "route_prefix": "/", "import_path": "serve_app.app:build_gateway", "args": {}}
    model = {"name": "bench", "route_prefix": None, "import_path": import_path, "args": dict(model_args)}
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [gateway, model]}


def _is_up(process: ServeProcess, url: str) -> bool:
    """Wait for /health; False when the process ends before, or takes too long."""
    deadline_s = time.monotonic() + _START_S
    while process.exit_status is None and time.monotonic() < deadline_s:
        if is_healthy(url):
            return True
        time.sleep(_POLL_S)
    return False


def is_healthy(url: str) -> bool:
    """Whether GET /health says so."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
