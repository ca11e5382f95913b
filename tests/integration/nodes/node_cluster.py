"""A Ray cluster of several nodes on this machine, and `rayshard` as somebody uses it against a cluster."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import yaml

from tests.integration.serve_cluster import LEFT_S, ROOT, free_port, left_after


@dataclass(frozen=True)
class RayNode:
    """A node of the cluster."""

    address: str
    raylet: int  # process id

    def processes(self, title: str) -> list[psutil.Process]:
        """Its workers whose title begins so: `ray::Shard`, `ray::ServeReplica:demo`."""
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.raylet).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(title):
                        found.append(process)
        return found


@dataclass(frozen=True)
class Deploying:
    """A `rayshard deploy` under way."""

    process: "subprocess.Popen[str]"
    output: Path

    @property
    def printed(self) -> str:
        """What it has said so far."""
        return self.output.read_text()

    def ended(self) -> str:
        """All that it has printed, if it went well."""
        code = self.process.wait(timeout=240)
        assert code == 0, self.printed
        return self.printed


class NodeCluster:
    """Nodes that a test adds and kills; HTTP is on the first of them."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="rs-"))  # short: Ray's sockets have long names
        self.port, self._dashboard_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._nodes: list[RayNode] = []
        self._commands: list[subprocess.Popen[str]] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_AUTH_MODE": "token",
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-m", "tests.integration.nodes.ray_nodes", str(self.directory)]
        self._output = (self.directory / "nodes.txt").open("wb")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
            start_new_session=True,
        )

    def add(self, address: str, num_cpus: int, **arguments: Any) -> RayNode:
        """Start a node; the first is the head."""
        assert address != "127.0.0.1", "Ray takes that for the machine's own address wherever it is given"
        if not self._nodes:
            arguments["dashboard_port"] = self._dashboard_port
        given = {"node_ip_address": address, "num_cpus": num_cpus, **arguments}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, (self.directory / "nodes.txt").read_text()[-3000:]
        self._nodes.append(RayNode(address, json.loads(line)["raylet"]))
        return self._nodes[-1]

    def deploy(self, applications: list[dict[str, Any]], timeout_s: float = 600) -> "Deploying":
        """`rayshard deploy`, which goes on until the applications run."""
        path = self.directory / "serve.yaml"
        content = {
            "proxy_location": "HeadOnly",  # two nodes of one machine cannot listen on one port
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": applications,
        }
        path.write_text(yaml.safe_dump(content))
        output = self.directory / f"deploy-{len(self._commands)}.txt"
        with output.open("w") as file:
            return Deploying(self._rayshard("deploy", str(path), "--timeout-s", str(timeout_s), stdout=file), output)

    def status(self) -> str:
        """What `rayshard status` prints."""
        return self._rayshard("status").communicate(timeout=120)[0]

    def health(self) -> dict[str, Any]:
        """GET /health, whatever its status."""
        body: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=30).json()
        return body

    def is_ready(self, *models: str) -> bool:
        """Whether each of them has a copy that is ready."""
        told = self.health().get("models", {})
        return all(any(copy["state"] == "ready" for copy in told.get(model, [])) for model in models)

    def complete(self, model: str, prompt: str, **arguments: Any) -> dict[str, Any]:
        """POST /v1/completions, greedy."""
        body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 24, "logprobs": 2, **arguments}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    def logged(self, text: str) -> bool:
        """Whether a process of the cluster has logged it."""
        logs = (self.directory / "session_latest" / "logs").rglob("*")
        return any(text in path.read_text(errors="replace") for path in logs if path.suffix in (".log", ".err"))

    def wait_until(self, is_true: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Seconds until a condition holds."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            with contextlib.suppress(httpx.TransportError, json.JSONDecodeError):
                if is_true():
                    return time.monotonic() - started
            time.sleep(0.2)
        raise AssertionError(f"{what} took longer than {timeout_s} s; {self.status()}")

    def kill(self, node: RayNode) -> None:
        """SIGKILL to its raylet, with which its workers end."""
        os.kill(node.raylet, signal.SIGKILL)

    def stop(self) -> None:
        """End all nodes; nothing may be left."""
        for command in self._commands:
            command.kill()
            command.communicate()
        started = psutil.Process(self._process.pid).children(recursive=True)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(120)
        finally:
            self._process.kill()
            left = left_after([one for one in started if not _is_agent(one)], LEFT_S)
            for process in started:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self._output.close()
            if self._process.stdout is not None:
                self._process.stdout.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        assert not left, f"left behind: {left}"

    def _rayshard(self, *arguments: str, stdout: int | IO[str] = subprocess.PIPE) -> "subprocess.Popen[str]":
        command = [str(Path(sys.executable).with_name("rayshard")), *arguments]
        address = ["--address", f"http://127.0.0.1:{self._dashboard_port}"]
        self._commands.append(
            subprocess.Popen(
                [*command, *address],
                env=self._environment,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return self._commands[-1]


def _is_agent(process: psutil.Process) -> bool:
    """Whether it is Ray's own, of a raylet: one whose raylet was killed may take a minute to take note."""
    with contextlib.suppress(psutil.Error):
        return process.name().startswith(("ray::DashboardA", "ray::RuntimeEnv"))
    return False
