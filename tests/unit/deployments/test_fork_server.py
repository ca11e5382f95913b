"""Processes that are forked by a server which has imported what they need; here it imports nothing."""

import json
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.deployments.fork_server import variables_line
from serve_app.deployments.forked_process import WorkerCommand, ask_server, own_command

SERVER = """
import os, sys
from pathlib import Path
from serve_app.deployments.fork_server import serve

socket, prepared = map(Path, sys.argv[1:])
def prepare_with_ray():
    prepared.write_text(os.environ["RAY_RAYLET_PID"])
    sys.path.insert(0, "/site-packages/ray/thirdparty_files")

serve(socket, lambda: None, prepare_with_ray, request_s=0.2)
"""
WORKER = """
import json, os, resource, sys
from pathlib import Path

told = {
    "arguments": sys.argv[1:],
    "directory": os.getcwd(),
    "variables": dict(os.environ),
    "pid": os.getpid(),
    "group": os.getpgid(0),
    "max_open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
    "path": sys.path,
}
Path(sys.argv[1] + ".new").write_text(json.dumps(told))
os.rename(sys.argv[1] + ".new", sys.argv[1])
"""

pytestmark = pytest.mark.process


@pytest.fixture
def server(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "socket"), str(tmp_path / "prepared")]
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=others, preexec_fn=lower_limit) as process:
        wait_for(tmp_path / "socket")
        yield process


def lower_limit() -> None:
    """As Ray's limit on open files is when the servers are started."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


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
    command = replace(
        own_command(worker(tmp_path), {**own, "RAY_CLIENT_MODE": "0"}), directory=str(tmp_path / "elsewhere")
    )
    ask_when_it_listens(tmp_path / "socket", command)
    of_worker = told(tmp_path)
    assert of_worker["arguments"] == command.arguments[1:]
    assert of_worker["directory"] == command.directory
    assert of_worker["variables"].items() >= command.variables.items()
    assert "PATH" not in of_worker["variables"]
    assert of_worker["pid"] not in (os.getpid(), server.pid)
    assert of_worker["group"] == of_worker["pid"]
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
    assert not ask_server(str(tmp_path / "socket"), own_command(worker(tmp_path), variables))
    server.communicate(timeout=30)
    assert not (tmp_path / "told").exists()


def test_a_server_that_is_never_told_of_ray_ends_with_its_input(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None
    server.stdin.close()
    assert server.wait(30) == 0


def test_a_worker_may_open_as_many_files_as_the_process_that_asked(
    server: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    tell(server, None)
    own, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert own > 64
    ask_when_it_listens(tmp_path / "socket", own_command(worker(tmp_path), {}))
    assert told(tmp_path)["max_open_files"] == own


def test_a_limit_above_what_is_allowed_is_what_is_allowed(server: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    tell(server, None)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ask_when_it_listens(tmp_path / "socket", replace(own_command(worker(tmp_path), {}), max_open_files=hard + 1))
    assert told(tmp_path)["max_open_files"] == hard


def test_a_worker_goes_as_early_as_the_process_that_asked_when_memory_runs_out(
    server: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    tell(server, None)
    own = Path("/proc/self/oom_score_adj").read_text()
    command = own_command(worker(tmp_path), {})
    assert command.oom_score_adj == own
    raised = str((int(own) + 1000) // 2) + "\n"
    ask_when_it_listens(tmp_path / "socket", replace(command, oom_score_adj=raised))
    assert told(tmp_path)["oom_score_adj"] == raised


@pytest.mark.parametrize("oom_score_adj", [None, "-1000"])
def test_one_whose_score_cannot_be_taken_is_forked(
    oom_score_adj: str | None, server: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    tell(server, None)
    command = replace(own_command(worker(tmp_path), {}), oom_score_adj=oom_score_adj)
    ask_when_it_listens(tmp_path / "socket", command)
    assert told(tmp_path)["oom_score_adj"]


def test_a_script_finds_what_lies_beside_it_first_and_nothing_in_the_servers_folder(
    server: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    tell(server, {"RAY_RAYLET_PID": "7"})
    ask_when_it_listens(tmp_path / "socket", own_command(worker(tmp_path), {"RAY_RAYLET_PID": "7"}))
    first, second, *others = told(tmp_path)["path"]
    assert (first, second) == (str(tmp_path), "/site-packages/ray/thirdparty_files")
    assert "" not in others, "what Python puts first for -c"


def connect(path: Path) -> socket.socket:
    deadline_s = time.monotonic() + 30
    connection = socket.socket(socket.AF_UNIX)
    while connection.connect_ex(str(path)) != 0:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return connection


def written(reader: int) -> bytes:
    """What a pipe gives until nobody holds its other end."""
    with os.fdopen(reader, "rb") as file:
        assert select.select([file], [], [], 30)[0]
        return file.read()


PRINT = "print('it runs', flush=True)"


def test_one_that_has_ended_while_it_waited_is_not_forked(server: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    (tmp_path / "print.py").write_text(PRINT)
    reader, writer = os.pipe()
    with connect(tmp_path / "socket") as connection:
        socket.send_fds(connection, [b"\n"], [0, writer, writer])
        connection.sendall(json.dumps(asdict(own_command([str(tmp_path / "print.py")], {}))).encode())
    os.close(writer)
    tell(server, None)
    assert ask_server(str(tmp_path / "socket"), own_command(worker(tmp_path), {}))
    assert written(reader) == b""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"arguments": []}', "null"])
def test_what_is_not_a_command_is_closed_and_others_go_on(
    text: str, server: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    tell(server, None)
    reader, writer = os.pipe()
    with connect(tmp_path / "socket") as connection:
        socket.send_fds(connection, [b"\n"], [0, writer, writer])
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        os.close(writer)
        assert written(reader) == b""
    assert ask_server(str(tmp_path / "socket"), own_command(worker(tmp_path), {}))


def test_one_that_says_nothing_does_not_keep_others_waiting(server: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    tell(server, None)
    with connect(tmp_path / "socket"):
        assert ask_server(str(tmp_path / "socket"), own_command(worker(tmp_path), {}))
