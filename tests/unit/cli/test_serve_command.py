"""`rayshard serve` with a stand-in for `serve run`: starting, failing, retrying, stopping."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from ray.serve._private import constants

from serve_app.cli.check_file import CheckedFile
from serve_app.cli.running_servers import RunningServer, running_servers
from serve_app.cli.serve_command import child_environment, serve
from serve_app.cli.serve_process import session_members
from serve_app.cli.serve_texts import ready_text
from serve_app.config.gateway import GatewayConfig
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.serve_file import ModelApplication, ServeFile
from serve_app.planning.setting_problems import Problem

# Serves /health, and tells what Serve would. On SIGINT it ends, but leaves a child behind, as Ray's dashboard does;
# once healthy it has its parent told to stop. When it is BUSY, it drains until its parent is told again. When LOST, it
# says once that Ray is, and does not end by itself; the start after that is RUNNING.
STAND_IN = """
import http.server, json, os, pathlib, signal, subprocess, sys, time

port, status, num_missed_starts, directory = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), pathlib.Path(sys.argv[4])
starts = directory / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
(directory / "session").write_text(str(os.getpid()))
begin = sys.stdin.readline()
if not begin:
    sys.exit()
log = os.open(json.loads(begin)["log_path"], os.O_WRONLY | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)

def tell(**event):
    print("rayshard serve: " + json.dumps(event), flush=True)

print("variables", *json.loads(begin)["variables"], flush=True)
print("host", json.loads(begin)["http_host"], flush=True)
tell(type="phase", text="starting Ray")
if len(starts.read_text()) <= num_missed_starts:
    sys.exit("The current node timed out during startup.")
subprocess.Popen([sys.executable, "-c", "import os, time; os.setpgid(0, 0); time.sleep(60)"])
tell(type="phase", text="loading demo", is_ray_up=True)
tell(type="dashboard", url=f"http://127.0.0.1:{port}")
message = "Traceback\\n\\x1b[31mValueError: no such model"
is_lost = status == "LOST" and len(starts.read_text()) == 1
if status == "LOST" and not is_lost:
    status = "RUNNING"
is_up = status in ("RUNNING", "BUSY", "LOST")
tell(type="application", name="demo", status="DEPLOYING", message="", room="waits for room: no node has 8 GPUs")
tell(type="application", name="demo", status="RUNNING" if is_up or status == "UNMET" else status, message=message)
print("(controller) ERROR something to show", flush=True)
if status.startswith("cannot "):
    print(f"(Router pid=1) ERROR x model cannot start model=demo kind={status[7:]} reason=why", flush=True)
signal.signal(signal.SIGINT, signal.SIG_IGN if status in ("STUCK", "LOST") else signal.default_int_handler)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        is_health = self.path == "/health"
        is_ok = is_up or status in ("STARTING", "UNMET")
        self.send_response(503 if is_health and not is_ok else 200)
        self.end_headers()
        health = {"status": "ok" if is_ok else "unavailable", "num_starting": int(status == "UNMET")}
        self.wfile.write(json.dumps(health).encode())
        if is_health and is_lost:
            tell(type="ray_lost", reason="Ray's raylet ended")
        elif is_health and is_up:
            os.kill(os.getppid(), signal.SIGTERM)

    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("127.0.0.1", port), Handler)
try:
    server.serve_forever()
except KeyboardInterrupt:
    drain_s = json.loads(begin)["drain_s"]
    tell(type="draining", num_requests=2)
    if status == "BUSY":
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    tell(type="drained", num_left=1)
    print(f"shut down after {drain_s} s", flush=True)
"""


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def file_of(port: int, directory: Path) -> ServeFile:
    model = ModelApplication("demo", "args", ModelConfig(name="demo", source="model"), None)
    path = directory / "serve_config.yaml"
    return ServeFile(path, "127.0.0.1", port, "gateway", GatewayConfig(), [model])


def stand_in(port: int, status: str, num_missed_starts: int, directory: Path) -> Sequence[str]:
    return [sys.executable, "-c", STAND_IN, str(port), status, str(num_missed_starts), str(directory)]


def served(serve_file: ServeFile, plan_text: str, child: Sequence[str], drain_s: float = 5.0) -> int:
    """Exit status, when the file has no mistakes."""
    serve_file.path.touch()
    return serve(serve_file.path, lambda: CheckedFile(serve_file, plan_text, [], [], []), drain_s, child)


@pytest.mark.process
def test_it_serves_until_told_to_stop_and_leaves_no_process(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert served(file_of(port, tmp_path), "the shards", stand_in(port, "RUNNING", 0, tmp_path)) == 0
    printed = capsys.readouterr()
    assert "the shards" in printed.out
    assert "\nstarting Ray\nloading demo\n" in printed.out
    assert "\ndemo waits for room: no node has 8 GPUs\ndemo has found room\n" in printed.out
    assert f"Serving at http://127.0.0.1:{port}" in printed.out
    assert printed.err == "(controller) ERROR something to show\n"
    assert "\nDraining: 2 requests run; again to end at once\nStopping; 1 request has not ended" in printed.out
    assert "shut down after 5.0 s" in (tmp_path / ".rayshard" / f"serve-{port}.log").read_text()
    assert session_members(int((tmp_path / "session").read_text())) == []
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.process
@pytest.mark.parametrize(("host", "is_plain"), [("127.0.0.1", False), ("0.0.0.0", False), ("127.0.0.1", True)])
def test_the_child_is_told_profile_and_host(
    host: str, is_plain: bool, port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_file = file_of(port, tmp_path)
    serve_file.path.touch()
    child = stand_in(port, "RUNNING", 0, tmp_path)
    checked = CheckedFile(serve_file, "", [], [], []).listening_at(host)
    assert serve(serve_file.path, lambda: checked, 5.0, child, is_plain=is_plain) == 0
    first = capsys.readouterr().out.splitlines()[0]
    log = (tmp_path / ".rayshard" / f"serve-{port}.log").read_text()
    assert f"host {host}\n" in log
    is_told = "RAY_SERVE_ENABLE_HA_PROXY" in log
    assert is_told == first.startswith("Serve's throughput profile")
    assert not is_told or (host, is_plain) == ("127.0.0.1", False)
    assert first.startswith("Starting" if is_plain else "Serve's ")


@pytest.mark.process
@pytest.mark.parametrize(("status", "drain_s", "told"), [("BUSY", 600.0, "Draining: 2"), ("RUNNING", 0.0, "Stopping")])
def test_a_second_signal_ends_it_at_once_and_so_does_the_first_without_draining(
    status: str, drain_s: float, told: str, port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = stand_in(port, status, 0, tmp_path)
    assert served(file_of(port, tmp_path), "", child, drain_s) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(told)
    assert "shut down" not in (tmp_path / ".rayshard" / f"serve-{port}.log").read_text()
    assert session_members(int((tmp_path / "session").read_text())) == []


@pytest.mark.process
def test_it_leaves_word_of_itself_while_it_runs(port: int, tmp_path: Path) -> None:
    directory, seen = tmp_path / "cache" / "rayshard" / "running", list[RunningServer]()

    def look_and_interrupt() -> None:
        deadline_s = time.monotonic() + 30
        while not any(one.dashboard_url for one in running_servers(directory)) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        seen.extend(running_servers(directory))
        os.kill(os.getpid(), signal.SIGINT)

    looking = threading.Thread(target=look_and_interrupt)
    looking.start()
    assert served(file_of(port, tmp_path), "", stand_in(port, "STUCK", 0, tmp_path)) == 0
    looking.join()
    assert [(one.pid, one.http_port, one.file) for one in seen] == [
        (os.getpid(), port, str(tmp_path / "serve_config.yaml"))
    ]
    assert seen[0].dashboard_url == f"http://127.0.0.1:{port}"
    assert running_servers(directory) == []


@pytest.mark.process
@pytest.mark.parametrize(("num_missed_starts", "exit_status"), [(2, 0), (3, 1)])
def test_it_tries_three_times_when_ray_misses_its_start(
    num_missed_starts: int, exit_status: int, port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = stand_in(port, "RUNNING", num_missed_starts, tmp_path)
    assert served(file_of(port, tmp_path), "", command) == exit_status
    assert len((tmp_path / "starts").read_text()) == 3
    assert ("The current node timed out during startup." in capsys.readouterr().err) == (exit_status == 1)


@pytest.mark.process
def test_it_starts_again_when_ray_is_lost(port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert served(file_of(port, tmp_path), "", stand_in(port, "LOST", 0, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"Serving at http://127.0.0.1:{port}") == 2
    assert "Ray's raylet ended; starting again\n" in printed
    assert len((tmp_path / "starts").read_text()) == 2
    assert session_members(int((tmp_path / "session").read_text())) == []


@pytest.mark.process
def test_an_application_that_fails_ends_it_with_the_reason(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert served(file_of(port, tmp_path), "", stand_in(port, "DEPLOY_FAILED", 0, tmp_path)) == 1
    assert "application demo could not be deployed:\nTraceback\nValueError: no such model\n" in capsys.readouterr().err
    assert session_members(int((tmp_path / "session").read_text())) == []


@pytest.mark.process
def test_a_model_that_cannot_start_ends_it_at_once_with_the_cause(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert served(file_of(port, tmp_path), "", stand_in(port, "cannot ConfigError", 0, tmp_path)) == 1
    assert "error: model demo cannot start: why\n" in capsys.readouterr().err
    assert session_members(int((tmp_path / "session").read_text())) == []


@pytest.mark.process
@pytest.mark.parametrize("status", ["STUCK", "STARTING", "UNMET", "cannot ShardLostError"])  # UNMET by the Gateway
def test_a_start_that_does_not_end_is_stopped_within_seconds(
    status: str, port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt_when_up() -> None:
        while f"127.0.0.1:{port}" not in log.read_text(errors="replace") if log.exists() else True:
            time.sleep(0.05)
        time.sleep(1)
        told_s.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    log, told_s = tmp_path / ".rayshard" / f"serve-{port}.log", list[float]()
    interrupting = threading.Thread(target=interrupt_when_up)
    interrupting.start()
    assert served(file_of(port, tmp_path), "", stand_in(port, status, 0, tmp_path)) == 0
    interrupting.join()
    assert time.monotonic() - told_s[0] < 12
    printed = capsys.readouterr()
    assert f"log in {log}" in printed.out
    assert f"Ray's dashboard is at http://127.0.0.1:{port}. From another terminal:\n" in printed.out
    assert f"/rayshard deploy {tmp_path / 'serve_config.yaml'}\n" in printed.out
    assert "Serving at" not in printed.out
    assert ("reason=why" in printed.err) == status.startswith("cannot ")  # Serve may yet bring it up
    assert session_members(int((tmp_path / "session").read_text())) == []


@pytest.mark.process
def test_a_file_with_mistakes_ends_the_child_before_it_begins(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(port, tmp_path).path
    path.touch()
    problems = [Problem("args", "no such model")]
    child = stand_in(port, "RUNNING", 0, tmp_path)
    assert serve(path, lambda: CheckedFile(None, "", problems, [], []), 5.0, child) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "args: no such model\n")
    assert not (tmp_path / ".rayshard").exists()
    assert session_members(int((tmp_path / "session").read_text())) == [] if (tmp_path / "session").exists() else True


@pytest.mark.process
def test_a_port_in_use_is_refused_before_anything_starts(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        assert served(file_of(port, tmp_path), "", stand_in(port, "RUNNING", 0, tmp_path)) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert not (tmp_path / ".rayshard").exists()


@pytest.mark.process
def test_a_grpc_port_in_use_is_refused_too(port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        serve_file = replace(file_of(port, tmp_path), grpc_port=taken)
        assert served(serve_file, "", stand_in(port, "RUNNING", 0, tmp_path)) == 1
    assert f"grpc_options: cannot listen on 0.0.0.0:{taken}" in capsys.readouterr().err
    assert not (tmp_path / ".rayshard").exists()


def test_the_child_gets_a_ray_of_its_own() -> None:
    environment = child_environment({"HOME": "/home/user", "RAY_worker_niceness": "5"})
    assert environment["RAY_ADDRESS"] == "local"
    assert environment["RAY_worker_niceness"] == "5"
    assert environment["MALLOC_ARENA_MAX"] == "2"
    assert environment["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] == "0.2"
    assert environment["HOME"] == "/home/user"
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=10\.0\.0\.1:6379 names a cluster"):
        child_environment({"RAY_ADDRESS": "10.0.0.1:6379"})


def test_a_replica_that_hangs_is_killed_when_it_is_replaced_and_this_serve_knows_how() -> None:
    name = "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"
    assert child_environment({})[name] == "1"
    assert isinstance(getattr(constants, name), bool)


def test_the_curl_line_is_one_that_a_shell_reads_back(tmp_path: Path) -> None:
    text = ready_text(file_of(8000, tmp_path), "", tmp_path / "log")
    curl, url, *_, body = shlex.split(text.splitlines()[-1])
    assert (curl, url) == ("curl", "http://127.0.0.1:8000/v1/completions")
    assert json.loads(body)["model"] == "demo"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "chat_template.jinja").touch()
    assert "/v1/chat/completions" in ready_text(file_of(8000, tmp_path), "", tmp_path / "log")


@pytest.mark.process
def test_session_members_are_those_that_live() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        assert session_members(process.pid) == [process.pid]
        process.kill()
        deadline_s = time.monotonic() + 10
        while session_members(process.pid):
            assert time.monotonic() < deadline_s
    assert os.getpid() in session_members(os.getsid(0))
