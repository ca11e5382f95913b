"""Which cluster a command means: the one whose dashboard is named, or the `rayshard serve` of this user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.cli.clock import Clock
from serve_app.cli.ray_dashboard import Dashboard, auth_token, dashboard_url
from serve_app.cli.running_servers import RunningServer, running_servers
from serve_app.errors import ConfigError

_DASHBOARD_S = 60.0  # it comes up last, when a server starts
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class FoundCluster:
    """Whom to ask."""

    dashboard: Dashboard
    server: RunningServer | None = None  # None: a cluster that the user has named


def find_cluster(
    address: str | None, http_port: int | None, variables: Mapping[str, str], directory: Path, clock: Clock
) -> FoundCluster:
    """The cluster to ask. Raises ConfigError when it cannot be known.

    address: what the user has named; None: RAY_DASHBOARD_ADDRESS, or the server that has left its note in `directory`
    and listens on http_port (None: on any).
    """
    named = address or variables.get("RAY_DASHBOARD_ADDRESS")
    if named:
        return FoundCluster(Dashboard(dashboard_url(named), auth_token(variables)))
    port = _the_server(running_servers(directory), http_port).http_port
    deadline_s = clock.now_s() + _DASHBOARD_S
    while True:
        server = _the_server(running_servers(directory), port)
        if server.dashboard_url is not None:
            token = auth_token(server.variables) or auth_token(variables)
            return FoundCluster(Dashboard(server.dashboard_url, token), server)
        if clock.now_s() >= deadline_s:
            raise ConfigError(f"the server on port {port} has no dashboard yet; its log says why: {server.log}")
        clock.sleep(_POLL_S)


def _the_server(servers: Sequence[RunningServer], http_port: int | None) -> RunningServer:
    found = [server for server in servers if http_port in (None, server.http_port)]
    if len(found) == 1:
        return found[0]
    others = ", ".join(f"{server.file} on port {server.http_port}" for server in servers)
    where = "" if http_port is None else f" on port {http_port}"
    if found:
        raise ConfigError(f"several `rayshard serve` of yours run here: {others}; say which by --port")
    running = f" (there is {others})" if others else ""
    raise ConfigError(
        f"no `rayshard serve` of yours runs here{where}{running}; start one, "
        "or name another cluster's dashboard: --address http://HOST:8265"
    )
