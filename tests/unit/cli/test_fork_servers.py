"""Which servers fork the workers of `rayshard serve`, and how they end."""

import os
from pathlib import Path

import pytest

from serve_app.cli.fork_servers import ForkServers
from serve_app.config.environment import read_environment
from serve_app.deployments.forked_process import ask_server, own_command

MARK = "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))"


@pytest.mark.parametrize("variables", [{}, {"RAYSHARD_SHARD_SERVER": "/tmp/s", "RAYSHARD_WORKER_SERVER": "/tmp/w"}])
def test_there_is_none_where_nobody_asks_one(variables: dict[str, str]) -> None:
    engines = [] if variables else ["generation"]
    with ForkServers(read_environment(variables), engines, has_workers=not variables) as servers:  # type: ignore[arg-type]
        servers.tell_variables({})


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
