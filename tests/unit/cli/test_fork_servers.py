"""Which servers fork the workers of `rayshard serve`, and how they end."""

import os
import time
from pathlib import Path

import psutil
import pytest

from serve_app.cli.fork_servers import ForkServers
from serve_app.config.environment import read_environment
from serve_app.deployments.forked_process import ask_server, own_command
from serve_app.types.shards import EngineKind

MARK = "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))"


@pytest.mark.parametrize("names", [[], ["RAYSHARD_SHARD_SERVER", "RAYSHARD_WORKER_SERVER"]])
def test_there_is_none_where_nobody_asks_one(names: list[str], tmp_path: Path) -> None:
    environment = read_environment({name: str(tmp_path / name) for name in names})
    engines: list[EngineKind] = [] if names else ["generation"]
    with ForkServers(environment, engines, has_workers=not names) as servers:
        servers.tell_variables(None)
    assert list(tmp_path.iterdir()) == [], "a server leaves its socket behind"


@pytest.mark.process
def test_shards_are_forked_until_it_is_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "shards")
    (tmp_path / "mark.py").write_text(MARK)
    command = own_command([str(tmp_path / "mark.py"), str(tmp_path / "pid")], os.environ)
    with ForkServers(read_environment({"RAYSHARD_SHARD_SERVER": path}), ["module"], has_workers=False) as servers:
        servers.tell_variables(None)
        while not ask_server(path, command):
            assert not (tmp_path / "pid").exists()
    assert not ask_server(path, command)


@pytest.mark.process
def test_one_that_has_ended_is_told_and_left_without_an_error(tmp_path: Path) -> None:
    environment = read_environment({"RAYSHARD_SHARD_SERVER": str(tmp_path / ("s" * 200))})  # longer than it may be
    others = set(psutil.Process().children())
    with ForkServers(environment, ["module"], has_workers=False) as servers:
        (server,) = set(psutil.Process().children()) - others
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        servers.tell_variables(None)


@pytest.mark.process
def test_one_that_still_imports_ends_with_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    environment = read_environment({"RAYSHARD_SHARD_SERVER": str(tmp_path / "shards")})
    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ForkServers(environment, ["module"], has_workers=False):
        raise KeyboardInterrupt
    assert time.monotonic() - start_s < 40
