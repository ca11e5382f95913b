"""A cluster that is meant to break: its processes by what they do, and an end that leaves none of them."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from serve_app.cli.serve_process import session_members
from tests.integration.serve_cluster import ServeCluster, model_application

SHARD = "ray::Shard"
ROUTER = "ray::ServeReplica:demo:Router"
GATEWAY = "ray::ServeReplica:gateway"
PROXY = "ray::ProxyActor"
CONTROLLER = "ray::ServeController"

_READY_S = 180.0
_HEALTH_S = 10.0
_NUM_ASKED = 12  # times in a row, where one of several Gateways answers


@dataclass(frozen=True, slots=True)
class Layout:
    """How many of each a row begins with."""

    num_copies: int = 1
    num_gateways: int = 1
    has_second_model: bool = False
    num_standby: int = 0  # processes of each copy that wait for the loss of a shard

    def applications(self) -> list[dict[str, Any]]:
        """The YAML's applications; the demo model over two shards."""
        gateway: dict[str, Any] = {
            "name": "gateway",
            "route_prefix": "/",
            "import_path": "serve_app.app:build_gateway",
            "args": {},
            "deployments": [{"name": "Gateway", "num_replicas": self.num_gateways}],
        }
        demo = model_application(
            "demo",
            router={"num_replicas": self.num_copies},
            parallel={"pipeline": 2},
            standby_shards=self.num_standby,
        )
        return [gateway, demo, *([model_application("second")] if self.has_second_model else [])]


class FaultyCluster(ServeCluster):
    """A cluster of one layout, ready."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._client = httpx.Client(timeout=_HEALTH_S, trust_env=False, verify=False)
        super().__init__(layout.applications())
        self._sessions: set[int] = set()
        self.all_pids()
        try:
            self.wait_until(lambda: len(self.pids(GATEWAY)) == layout.num_gateways, _READY_S, "all Gateways")
            self.wait_until(self._all_gateways_know, _READY_S, "all copies")
        except BaseException:
            self.end()
            raise

    def processes(self) -> dict[str, set[int]]:
        """The living processes of each kind, replaced ones too."""
        kinds = (SHARD, "ray::ServeReplica:", PROXY, CONTROLLER)
        return {kind: set(self.pids(kind)) for kind in kinds}

    def all_pids(self) -> list[int]:
        """Every living process of the cluster, also of a start before this one."""
        with contextlib.suppress(psutil.Error):  # `rayshard serve` has ended
            self._sessions |= {child.pid for child in psutil.Process(self._process.pid).children()}
        return [pid for session in self._sessions for pid in session_members(session)]

    def named(self, name: str) -> list[int]:
        """Living processes of the cluster by the name of their program: `raylet`."""
        found = []
        for pid in self.all_pids():
            with contextlib.suppress(psutil.Error):
                if psutil.Process(pid).name() == name:
                    found.append(pid)
        return found

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of GET /health."""
        answer = self._client.get(f"{self.url}/health")
        return answer.status_code, answer.json()

    def is_healthy(self) -> bool:
        """Whether GET /health says so; False also when it says nothing."""
        with contextlib.suppress(httpx.TransportError, ValueError):
            return self.health()[0] == 200
        return False

    def has_all_copies(self) -> bool:
        """Whether the demo has as many copies as its layout, and everything is ready."""
        with contextlib.suppress(httpx.TransportError, ValueError, KeyError):
            status, body = self.health()
            states = [copy["state"] for copy in body["models"]["demo"]]
            return status == 200 and states == ["ready"] * self.layout.num_copies
        return False

    def _all_gateways_know(self) -> bool:
        """Whether whichever Gateway is asked has all copies: the proxy takes now one, now the other."""
        num_asked = 1 if self.layout.num_gateways == 1 else _NUM_ASKED
        return all(self.has_all_copies() for _ in range(num_asked))

    def end(self) -> str:
        """End all of it, whatever state it is in; what went wrong with that, if anything."""
        problem = ""
        try:
            self.stop()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            problem = f"the cluster's end: {str(error).splitlines()[0][:100]}"
        for pid in self.all_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return problem
