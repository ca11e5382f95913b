"""What a `rayshard serve` leaves for other commands."""

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from serve_app.cli.process_stat import read_stat
from serve_app.cli.running_servers import RunningServer, ServerNote, running_servers, servers_directory
from serve_app.config.environment import read_environment


def note(directory: Path, port: int = 8000) -> ServerNote:
    return ServerNote(directory, port, f"http://127.0.0.1:{port}", Path("/serve.yaml"), Path("/log"))


def test_a_server_can_be_found_while_it_runs(tmp_path: Path) -> None:
    directory = tmp_path / "running"
    with note(directory, 8001) as first, note(directory, 8000):
        assert [server.http_port for server in running_servers(directory)] == [8000, 8001]
        first.dashboard_is_at("http://127.0.0.1:8265")
        server = running_servers(directory)[1]
        assert (server.file, server.log, server.dashboard_url) == ("/serve.yaml", "/log", "http://127.0.0.1:8265")
        assert server.variables.get("PATH") == os.environ["PATH"]
        assert directory.stat().st_mode & 0o077 == 0
    assert running_servers(directory) == []
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"pid": 2**22 + 1}, {"host": "another"}])
def test_one_that_has_been_killed_is_not_found(tmp_path: Path, change: dict[str, object]) -> None:
    with note(tmp_path):
        (path,) = tmp_path.iterdir()
        server = msgspec.json.decode(path.read_bytes(), type=RunningServer)
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(server, **change)))
        assert running_servers(tmp_path) == []


def test_a_note_of_another_version_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "host-8000.json").write_text('{"pid": 1}')
    (tmp_path / "host-8001.json").write_text("{")
    assert running_servers(tmp_path) == []


def test_a_server_starts_where_no_note_can_be_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with note(tmp_path / "file" / "running") as one:
        one.dashboard_is_at("http://127.0.0.1:8265")
    assert running_servers(tmp_path / "file" / "running") == []


def test_notes_lie_in_the_users_cache() -> None:
    environment = read_environment({"XDG_CACHE_HOME": "/cache"})
    assert servers_directory(environment) == Path("/cache/rayshard/running")


def test_a_process_that_has_ended_has_no_stat() -> None:
    stat = read_stat(os.getpid())
    assert stat is not None
    assert (stat.pid, stat.session) == (os.getpid(), os.getsid(0))
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still there
        assert read_stat(process.pid) is None
    assert read_stat(process.pid) is None
