"""A real `rayshard serve` in processes of its own, driven as a user drives it: by its YAML, its ports and signals."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.cli.serve_process import session_members

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "examples" / "demo_model" / "model"
START_S = 300.0
LEFT_S = 30.0  # for the kernel, and for whoever is the parent of a process that has ended
_REQUEST_S = 30.0  # of a look at the server: a busy machine stands still for seconds

GATEWAY = {
    "name": "gateway",
    "route_prefix": "/",
    "import_path": "serve_app.app:build_gateway",
    "args": {"queue_timeout_s": 120.0, "failover": {"max_pause_s": 240.0}},  # a busy machine starts a Router slowly
}


def model_application(
    name: str, *, source: Path = DEMO_MODEL, router: dict[str, Any] | None = None, **args: Any
) -> dict[str, Any]:
    """A model's part of the YAML."""
    device = {"cpu_threads": 1}  # several copies share the cores; waiting threads of one would stall another
    application: dict[str, Any] = {
        "name": name,
        "route_prefix": None,
        "import_path": "serve_app.app:build_model",
        "args": {"name": name, "source": str(source), "max_model_len": 1024, "device": device, **args},
    }
    if router is not None:
        application["deployments"] = [{"name": "Router", **router}]
    return application


class ServeCluster:
    """One running `rayshard serve`, and what a test wants to know of it."""

    def __init__(
        self,
        applications: list[dict[str, Any]],
        grpc_options: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        *,
        drain_s: float = 30.0,
        is_plain: bool = False,
    ) -> None:
        self._drain_s = drain_s
        self.directory = Path(tempfile.mkdtemp(prefix="rs-"))  # short: Ray's sockets have long names
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._applications = list(applications)
        self._grpc_options = grpc_options
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),  # for steps and modules of the tests
            "RAY_TMPDIR": str(self.directory / "ray"),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_AUTH_MODE": "token",
            "RAY_DASHBOARD_PORT": str(free_port()),
            **(environment or {}),
        }
        (self.directory / "ray").mkdir()
        self._write_config()
        self._output = (self.directory / "output.txt").open("wb")
        self._process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("rayshard")),
                "serve",
                "--drain-s",
                str(drain_s),
                *(["--plain"] if is_plain else []),
                str(self.config_path),
            ],
            cwd=self.directory,
            env=self._environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        try:
            self.wait_until(lambda: "Serving at" in self.output, START_S, "the start")
        except BaseException:
            self.stop()
            raise

    @property
    def config_path(self) -> Path:
        """The YAML it runs."""
        return self.directory / "serve_config.yaml"

    @property
    def output(self) -> str:
        """What `rayshard serve` has printed."""
        return (self.directory / "output.txt").read_text()

    @property
    def log(self) -> str:
        """What `serve run` has logged, without colours."""
        text = (self.directory / ".rayshard" / f"serve-{self.port}.log").read_text()
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def deploy(self, applications: list[dict[str, Any]]) -> None:
        """Change the YAML and hand it to the running cluster, by `serve deploy`."""
        self._applications = list(applications)
        self._write_config()
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("serve")),
                "deploy",
                "--address",
                self.dashboard,
                str(self.config_path),
            ],
            cwd=self.directory,
            env={key: value for key, value in self._environment.items() if key != "RAY_ADDRESS"},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def statuses(self) -> dict[str, str]:
        """What Serve says of each application: at once, where /health follows a second or three behind."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.get(f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=_REQUEST_S)
        found = answer.json()["applications"] if answer.status_code == 200 else {}
        return {name: one["status"] for name, one in found.items()}

    @property
    def dashboard(self) -> str:
        """The address of Ray's dashboard, once it is up."""
        told = re.compile(r"Ray's dashboard is at (http://[0-9.:]+)\. ")
        self.wait_until(lambda: told.search(self.output) is not None, 120, "the dashboard")
        address: str = told.findall(self.output)[-1]
        return address

    @property
    def token(self) -> str:
        """Ray's, which its dashboard asks for."""
        return self._environment["RAY_AUTH_TOKEN"]

    @property
    def applications(self) -> list[dict[str, Any]]:
        """The applications of the YAML it runs."""
        return list(self._applications)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of GET /health; where the proxy has no Gateway to ask, its text as the detail."""
        answer = httpx.get(f"{self.url}/health", timeout=_REQUEST_S)
        is_ours = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status_code, answer.json() if is_ours else {"models": {}, "detail": answer.text}

    def copies(self, model: str) -> list[dict[str, Any]]:
        """The states of a model's copies."""
        copies: list[dict[str, Any]] = self.health()[1]["models"].get(model, [])
        return copies

    def is_idle(self, model: str) -> bool:
        """Whether all copies of a model have told that nothing runs or waits there."""
        copies = self.copies(model)
        return bool(copies) and all(copy["num_running"] == copy["num_waiting"] == 0 for copy in copies)

    def is_healthy(self) -> bool:
        """Whether GET /health says so."""
        return self.health()[0] == 200

    def pids(self, title: str) -> list[int]:
        """Processes of this cluster whose Ray title begins so: `ray::Shard`, `ray::ServeReplica:demo`."""
        found = []
        for process in self._started():
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process.pid)
        return sorted(found)

    def num_processes(self) -> tuple[int, int]:
        """Replicas and shards, those that still leave among them."""
        return len(self.pids("ray::ServeReplica:")), len(self.pids("ray::Shard"))

    def files_with(self, text: str) -> list[Path]:
        """Files below its directory that hold a text."""
        found = []
        for path in self.directory.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a process that ends takes some along
                if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
                    found.append(path)
        return found

    def kill(self, pids: Iterable[int]) -> None:
        """SIGKILL to each; one that has ended with another of its group is dead as well."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def complete(self, model: str, prompt: str, timeout_s: float = 120, **arguments: Any) -> httpx.Response:
        """POST /v1/completions, greedy unless said."""
        body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 32, **arguments}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=timeout_s)

    def wait_until(self, is_true: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Seconds until a condition holds; fails after timeout_s, or when the server has ended."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            with contextlib.suppress(httpx.TransportError):
                if is_true():
                    return time.monotonic() - started
            if self._process.poll() is not None:
                raise AssertionError(f"rayshard serve ended during {what}:\n{self.output}")
            time.sleep(0.05)
        raise AssertionError(f"{what} took longer than {timeout_s} s\n{self.output[-2000:]}")

    def stop(self) -> None:
        """Ctrl-C, as a user would; and nothing may be left."""
        children = self._started() if self._process.poll() is None else []
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(120 + self._drain_s)
        finally:
            self._process.kill()
            left = left_after(children, LEFT_S)
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self._output.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        assert not left, f"left behind: {left}"

    def kill_command(self) -> list[psutil.Process]:
        """SIGKILL to `rayshard serve` alone; gives all that it had started."""
        started = self._started()
        self._process.kill()
        self._process.wait()
        return started

    def _started(self) -> list[psutil.Process]:
        """All that it has started: they are in one session, and shards have no parent there any more."""
        found: list[psutil.Process] = []
        for child in psutil.Process(self._process.pid).children():
            for pid in session_members(child.pid):
                with contextlib.suppress(psutil.Error):
                    found.append(psutil.Process(pid))
        return found

    def _write_config(self) -> None:
        config: dict[str, Any] = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": self._applications,
        }
        if self._grpc_options is not None:
            config["grpc_options"] = self._grpc_options
        self.config_path.write_text(yaml.safe_dump(config))


def assert_within(limit_s: float, measure_s: Callable[[], float]) -> None:
    """A promise is kept once in three tries: a machine that stands still for a moment does not do so each time."""
    took_s: list[float] = []
    while len(took_s) < 3 and min(took_s, default=limit_s) >= limit_s:
        took_s.append(measure_s())
    assert min(took_s) < limit_s, took_s


def left_after(started: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run then; one that has ended and that nobody has taken note of does not."""
    deadline_s = time.monotonic() + timeout_s
    while (left := [one for one in started if is_alive(one)]) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return left


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs: one that waits for its parent to take note of its end does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def event_data(line: str) -> dict[str, Any] | None:
    """The JSON of one server-sent event's line; None for [DONE] and blank lines."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return None
    data: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return data


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
