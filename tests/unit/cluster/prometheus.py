"""Prometheus itself, where it is installed: a server on this machine over samples of any times, and promtool."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NEEDED = "Prometheus's own programs are not here; apt-get install prometheus, or put prometheus and promtool on PATH"
_START_S = 20.0


def program(name: str) -> str:
    """Path of prometheus or promtool; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(NEEDED)
    return found


def promtool(*arguments: str, cwd: Path | None = None) -> str:
    """What it prints; an AssertionError when it finds something wrong."""
    done = subprocess.run([program("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Server:
    """A Prometheus that scrapes nothing."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str, at_s: float) -> list[dict[str, Any]]:
        """The vector that an expression comes to."""
        found: list[dict[str, Any]] = self.get("/api/v1/query", query=expression, time=str(at_s))["result"]
        return found


@contextmanager
def server_of(openmetrics: str, directory: Path) -> Iterator[Server]:
    """A server that has these samples."""
    samples, data, config = directory / "samples.om", directory / "data", directory / "empty.yaml"
    samples.write_text(openmetrics)
    config.write_text("global: {}\n")
    promtool("tsdb", "create-blocks-from", "openmetrics", str(samples), str(data))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/-/ready", process)
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "prometheus has ended"
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"prometheus was not ready within {_START_S:g} s")
