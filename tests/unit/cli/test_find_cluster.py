"""Which cluster a command means."""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from serve_app.cli.find_cluster import FoundCluster, find_cluster
from serve_app.cli.ray_dashboard import Dashboard
from serve_app.cli.running_servers import ServerNote
from serve_app.errors import ConfigError
from tests.unit.cli.fake_dashboard import FakeTime

URL = "http://127.0.0.1:8265"
TOKEN = {"RAY_AUTH_TOKEN": "secret"}


@pytest.fixture
def servers(tmp_path: Path) -> list[ServerNote]:
    """Two servers, when they are entered."""
    file, log = tmp_path / "serve.yaml", tmp_path / "log"
    return [ServerNote(tmp_path, port, f"http://127.0.0.1:{port}", file, log) for port in (8000, 8001)]


def test_what_the_user_names_comes_first(tmp_path: Path, servers: list[ServerNote]) -> None:
    variables = {**TOKEN, "RAY_DASHBOARD_ADDRESS": "http://other:8265"}
    with servers[0]:
        found = find_cluster("http://named:8265/", 8000, variables, tmp_path, FakeTime().clock)
        assert found == FoundCluster(Dashboard("http://named:8265", "secret"))
        found = find_cluster(None, 8000, variables, tmp_path, FakeTime().clock)
        assert found == FoundCluster(Dashboard("http://other:8265", "secret"))


def test_else_it_is_the_own_server_of_that_port(tmp_path: Path, servers: list[ServerNote]) -> None:
    with servers[0] as first, servers[1]:
        first.dashboard_is_at(URL)
        assert find_cluster(None, 8000, TOKEN, tmp_path, FakeTime().clock).dashboard.url == URL
        several = re.escape(f"several `rayshard serve` of yours run here: {tmp_path}/serve.yaml on port 8000, ")
        with pytest.raises(ConfigError, match=f"^{several}.* on port 8001; say which by --port$"):
            find_cluster(None, None, TOKEN, tmp_path, FakeTime().clock)
    with servers[0] as first:
        first.dashboard_is_at(URL)
        assert find_cluster(None, None, TOKEN, tmp_path, FakeTime().clock).dashboard.url == URL


def test_its_token_is_that_which_it_was_started_with(
    tmp_path: Path, servers: list[ServerNote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.cli.running_servers.variables_of", lambda _pid: {"RAY_AUTH_TOKEN": "its own"})
    with servers[0] as first:
        first.dashboard_is_at(URL)
        found = find_cluster(None, 8000, TOKEN, tmp_path, FakeTime().clock)
        assert found.dashboard.token == "its own"
        assert found.server is not None
        assert found.server.http_port == 8000


def test_a_server_that_still_starts_is_waited_for(tmp_path: Path, servers: list[ServerNote]) -> None:
    class DashboardComes(FakeTime):
        def _sleep(self, seconds: float) -> None:
            super()._sleep(seconds)
            if self.slept_s > 10:
                servers[0].dashboard_is_at(URL)

    with servers[0]:
        with pytest.raises(ConfigError, match=f"port 8000 has no dashboard yet; its log says why: {tmp_path / 'log'}"):
            find_cluster(None, 8000, TOKEN, tmp_path, FakeTime().clock)
        assert find_cluster(None, 8000, TOKEN, tmp_path, DashboardComes().clock).dashboard.url == URL


def test_where_there_is_none_it_is_said_what_to_do(tmp_path: Path, servers: list[ServerNote]) -> None:
    with ExitStack() as stack:
        with pytest.raises(ConfigError, match=r"^no `rayshard serve` of yours runs here; start one, or name"):
            find_cluster(None, None, TOKEN, tmp_path, FakeTime().clock)
        stack.enter_context(servers[1])
        with pytest.raises(ConfigError, match=r"runs here on port 8000 \(there is \S+ on port 8001\); start one, or"):
            find_cluster(None, 8000, TOKEN, tmp_path, FakeTime().clock)
