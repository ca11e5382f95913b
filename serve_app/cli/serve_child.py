"""The child of `rayshard serve`: starts Ray and Serve and deploys a Serve file, until SIGINT or its parent's death.

It does what `serve run` does, but side by side what does not need each other: while Ray starts, Serve is imported, and
so is what workers run, in servers that fork them; applications are built while the proxy starts. Ray's dashboard, a
dozen processes, comes last.
"""

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import msgspec
import ray
import ray._private.node
import ray._private.worker

from serve_app.cli.absolute_paths import with_http_host
from serve_app.cli.fork_servers import ForkServers
from serve_app.cli.parent_watch import ParentWatch
from serve_app.cli.serve_events import Begin, Event, Phase, RayLost, event_line
from serve_app.cli.serve_process import SHUTDOWN_S
from serve_app.config.environment import add_variables, own_variables, read_environment
from serve_app.deployments.light_serve import import_without_pandas

_NODE_METHODS = {  # of Ray's private node, by their parameters
    "start_ray_processes": ("self",),
    "start_api_server": ("self", "include_dashboard", "raise_on_failure"),
    "start_monitor": ("self",),
}
_LOST_POLL_S = 1.0
_WORKER = "-mserve_app.deployments.worker_process"  # Python's argument, in place of the path of Ray's setup_worker.py
_WORKER_VARIABLES = {"RAY_JOB_ID": "01000000"}  # of the first driver, which the child is
_VITAL = ("gcs_server", "raylet")  # without them Serve's proxy takes connections and never answers


class Node(Protocol):
    """What starts and watches Ray's processes of this machine."""

    def dead_processes(self) -> Sequence[tuple[str, "subprocess.Popen[bytes]"]]:
        """Those that have ended by themselves, by their kind."""
        ...


class HeadNode(ray._private.node.Node):  # type: ignore[misc]  # Ray's is not typed
    """Ray's processes of this machine, without those that ray.init would wait for; its workers are forked."""

    def __init__(self, ray_params: Any, *args: Any, when_started: Callable[[int], None], **kwargs: Any) -> None:
        """when_started: called with the raylet's pid."""
        self._when_started = when_started
        if sys.platform == "linux":
            ray_params.setup_worker_path = _WORKER
        super().__init__(ray_params, *args, **kwargs)

    def start_ray_processes(self) -> None:
        """Start the raylet; its agents take seconds to come up."""
        super().start_ray_processes()
        (raylet,) = self.all_processes["raylet"]
        self._when_started(raylet.process.pid)

    def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        """Put off until start_dashboard."""

    def start_monitor(self) -> None:
        """Left out: it asks for more machines, and there is this one."""

    def start_dashboard(self) -> str | None:
        """Start the dashboard, which ends with the thread that calls this; gives its URL, None when it is not up."""
        super().start_api_server(include_dashboard=None, raise_on_failure=False)
        return None if self.webui_url is None else f"http://{self.webui_url}"


def main(path: Path) -> None:
    """Serve a file that has been checked; begins when it is told to on standard input."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    line = sys.stdin.readline()
    if not line:
        return  # the file has mistakes, or our parent has ended
    begin = msgspec.json.decode(line, type=Begin)
    _log_to(begin.log_path)
    add_variables(begin.variables)
    is_known = has_known_node()
    with (
        ParentWatch(sys.stdin.fileno(), ray.shutdown, begin.drain_s + SHUTDOWN_S),
        ForkServers(read_environment(), begin.cpu_engines, has_workers=is_known) as servers,
    ):
        _tell(Phase("starting Ray"))
        start_dashboard, deployment = (_start_ray if is_known else _start_ray_whole)(servers)
        _tell(Phase("starting Ray Serve", is_ray_up=True))
        threading.Thread(target=tell_when_lost, args=(ray._private.worker._global_node, _tell), daemon=True).start()
        content = with_http_host(path, begin.http_host)
        deployment.serve_until_interrupted(content, _tell, start_dashboard, servers.close, begin.drain_s)


def tell_when_lost(node: Node, tell: Callable[[Event], None], poll_s: float = _LOST_POLL_S) -> None:
    """Wait until a process has ended that Ray cannot be without, and tell it."""
    while True:
        for name, process in node.dead_processes():
            if name in _VITAL:
                tell(RayLost(f"Ray's {name} (pid {process.pid}) ended with status {process.returncode}"))
                return
        time.sleep(poll_s)


def has_known_node() -> bool:
    """Whether this Ray's node starts its processes by the methods that HeadNode overrides."""
    return all(
        tuple(inspect.signature(getattr(ray._private.node.Node, name, _no_method)).parameters) == parameters
        for name, parameters in _NODE_METHODS.items()
    )


def _start_ray_whole(servers: ForkServers) -> tuple[Callable[[], str | None], ModuleType]:
    """The same where Ray is another one than is known: with its dashboard, and one after the other."""
    servers.tell_variables(None)
    url = ray.init(address="local", namespace="serve").dashboard_url
    deployment = _import_deployment()
    return lambda: f"http://{url}" if url else None, deployment


def _start_ray(servers: ForkServers) -> tuple[Callable[[], str | None], ModuleType]:
    """What starts the dashboard, and the module that deploys: it imports Serve while Ray's agents come up."""
    with ThreadPoolExecutor(1) as executor:
        importing: list[Future[ModuleType]] = []

        def go_on(raylet_pid: int) -> None:
            servers.tell_variables({**own_variables(), **_WORKER_VARIABLES, "RAY_RAYLET_PID": str(raylet_pid)})
            importing.append(executor.submit(_import_deployment))

        ray._private.node.Node = partial(HeadNode, when_started=go_on)  # what ray.init calls
        ray.init(address="local", namespace="serve")
        node = ray._private.worker._global_node
        assert isinstance(node, HeadNode)
        return node.start_dashboard, importing[0].result()


def _import_deployment() -> ModuleType:
    name = "serve_app.cli.serve_deployment"
    import_without_pandas([name])
    return sys.modules[name]


def _no_method() -> None:
    """In place of one that this Ray does not have."""


def _log_to(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    os.close(log)


def _tell(event: Event) -> None:
    print(event_line(event), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
