"""Processes of shards, forked by a server that has imported what they need; here it imports nothing."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.deployments.shard_process import WorkerCommand, ask_server

SERVER = """
import sys
from pathlib import Path
from serve_app.deployments.shard_server import serve

serve(Path(sys.argv[1]), lambda: None)
"""
WORKER = """
import json, os, sys
from pathlib import Path

told = [sys.argv[1:], os.getcwd(), dict(os.environ), os.getpid(), os.getpgid(0)]
Path(sys.argv[1] + ".new").write_text(json.dumps(told))
os.rename(sys.argv[1] + ".new", sys.argv[1])
"""

pytestmark = pytest.mark.process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "socket")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_for(tmp_path / "socket")
        yield process


def worker(directory: Path) -> list[str]:
    (directory / "worker.py").write_text(WORKER)
    return [str(directory / "worker.py"), str(directory / "told"), "--flag"]


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline_s, path
        time.sleep(0.01)


def told(directory: Path) -> Any:
    wait_for(directory / "told")
    return json.loads((directory / "told").read_text())


def test_the_server_forks_the_process_that_was_meant(server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    command = WorkerCommand(worker(tmp_path), str(tmp_path / "elsewhere"), {"RAY_JOB_ID": "01"})
    with socket.socket(socket.AF_UNIX) as connection:  # ends without a word
        while connection.connect_ex(str(tmp_path / "socket")) != 0:  # it is bound, and may not listen yet
            time.sleep(0.01)
    assert ask_server(str(tmp_path / "socket"), command)
    arguments, directory, variables, pid, group = told(tmp_path)
    assert arguments == command.arguments[1:]
    assert directory == command.directory
    assert variables.items() >= command.variables.items()
    assert "PATH" not in variables
    assert pid not in (os.getpid(), server.pid)
    assert group == pid
    assert server.stdin is not None
    server.stdin.close()
    assert server.wait(30) == 0


@pytest.mark.parametrize("has_server", [True, False])
def test_a_process_runs_its_script_itself_when_no_server_answers(has_server: bool, tmp_path: Path) -> None:
    if has_server:  # one that has ended leaves its socket behind
        (tmp_path / "socket").touch()
    command = [sys.executable, "-m", "serve_app.deployments.shard_process", str(tmp_path / "socket"), *worker(tmp_path)]
    with subprocess.Popen(command) as process:
        assert process.wait(30) == 0
    arguments, _, _, pid, _ = told(tmp_path)
    assert arguments == [str(tmp_path / "told"), "--flag"]
    assert pid == process.pid
