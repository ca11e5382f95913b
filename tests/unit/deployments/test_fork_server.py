"""Processes that are forked by a server which has imported what they need; here it imports nothing."""

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

from serve_app.deployments.fork_server import variables_line
from serve_app.deployments.forked_process import WorkerCommand, ask_server

SERVER = """
import os, sys
from pathlib import Path
from serve_app.deployments.fork_server import serve

socket, prepared = map(Path, sys.argv[1:])
serve(socket, lambda: None, lambda: prepared.write_text(os.environ["RAY_RAYLET_PID"]))
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
def server(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "socket"), str(tmp_path / "prepared")]
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=others) as process:
        wait_for(tmp_path / "socket")
        yield process


def tell(server: "subprocess.Popen[bytes]", variables: dict[str, str] | None) -> None:
    assert server.stdin is not None
    server.stdin.write(variables_line(variables))
    server.stdin.flush()


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


def ask_when_it_listens(path: Path, command: WorkerCommand) -> None:
    with socket.socket(socket.AF_UNIX) as connection:  # ends without a word
        while connection.connect_ex(str(path)) != 0:  # it is bound, and may not listen yet
            time.sleep(0.01)
    assert ask_server(str(path), command)


@pytest.mark.parametrize("has_ray", [True, False])
def test_the_server_forks_the_process_that_was_meant(
    has_ray: bool, server: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    own = {"RAY_RAYLET_PID": "7", "RAY_JOB_ID": "01"}
    tell(server, own if has_ray else None)
    command = WorkerCommand(worker(tmp_path), str(tmp_path / "elsewhere"), {**own, "RAY_CLIENT_MODE": "0"})
    ask_when_it_listens(tmp_path / "socket", command)
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
    prepared = tmp_path / "prepared"
    assert (prepared.read_text() if prepared.exists() else None) == ("7" if has_ray else None)


@pytest.mark.parametrize("variables", [{}, {"RAY_RAYLET_PID": "8"}, {"RAY_RAYLET_PID": "7", "RAY_JOB_ID": "02"}])
def test_one_that_would_import_another_ray_is_not_forked(
    variables: dict[str, str], server: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    tell(server, {"RAY_RAYLET_PID": "7"})
    wait_for(tmp_path / "prepared")
    assert not ask_server(str(tmp_path / "socket"), WorkerCommand(worker(tmp_path), str(tmp_path), variables))
    server.communicate(timeout=30)
    assert not (tmp_path / "told").exists()


def test_a_server_that_is_never_told_of_ray_ends_with_its_input(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None
    server.stdin.close()
    assert server.wait(30) == 0
