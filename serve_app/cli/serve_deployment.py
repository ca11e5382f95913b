"""Serve and the applications of a Serve file, in the child of `rayshard serve`."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from serve_app.backend.placement import WaitingPlaces
from serve_app.backend.ray_rooms import listed_applications, room_reasons
from serve_app.cli.clock import Clock
from serve_app.cli.serve_drain import drain, requests_left
from serve_app.cli.serve_events import ApplicationState, DashboardUp, Event, Phase
from serve_app.types.draining import RequestsLeft

_POLL_S = 0.1
_STATES_POLL_S = 0.5  # a look costs the controller and this process some 20 ms of CPU
_ROOMS_POLL_S = 2.0
_SETTLED_POLL_S = 10.0
_DASHBOARD_S = 15.0  # a start that takes longer can be looked at
_FINAL = ("RUNNING", "DEPLOY_FAILED")
_GATEWAY = "Gateway"  # its deployment
_ASK_S = 2.0


def serve_until_interrupted(
    content: dict[str, Any],
    tell: Callable[[Event], None],
    start_dashboard: Callable[[], str | None],
    when_settled: Callable[[], None],
    drain_s: float,
) -> None:
    """Deploy a Serve file's content; on SIGINT, let the requests at hand end, for drain_s at most, and stop Serve.

    start_dashboard: gives its URL. when_settled: called when no application is being deployed any more.
    """
    config = ServeDeploySchema.model_validate(content)
    rooms = _Rooms()
    try:
        _deploy(config)
        tell(Phase(f"loading {', '.join(application.name for application in config.applications)}"))
        _tell_states(tell, rooms, until_s=time.monotonic() + _DASHBOARD_S)
        dashboard_url = start_dashboard()
        if dashboard_url is not None:
            tell(DashboardUp(dashboard_url))
        _tell_states(tell, rooms)
        when_settled()
        while True:
            time.sleep(_SETTLED_POLL_S)
    except KeyboardInterrupt:
        if drain(_Gateways(), drain_s, tell, Clock()):  # else Serve would wait on for the requests that are left
            serve.shutdown()


class _Gateways:
    """Every Gateway of this cluster: an Ingress."""

    def __init__(self) -> None:
        running = serve.status().applications
        self._names = [name for name, one in running.items() if _GATEWAY in one.deployments]
        self._left: dict[str, dict[str, int]] = {name: {} for name in self._names}  # by application and replica

    def close(self) -> None:
        """See Ingress: the replicas themselves refuse requests, and tell why."""
        for name in self._names:
            self._drain(name)

    def num_requests(self) -> int:
        """See Ingress. A replica that has been started meanwhile is closed as well."""
        self.close()
        return sum(count for left in self._left.values() for count in left.values())

    def _drain(self, name: str) -> None:
        try:
            handle = serve.get_deployment_handle(_GATEWAY, name)
            if not handle.is_initialized:  # in throughput mode it would take this thread for an event loop's
                handle._init(_run_router_in_separate_loop=True)
            answers = handle.broadcast("drain").results(timeout_s=_ASK_S, return_exceptions=True)
        except TimeoutError as error:
            answers = [error]
        except (RayError, RayServeException):  # none runs
            answers = []
        told = [one for one in answers if isinstance(one, RequestsLeft)]
        num_silent = sum(isinstance(one, TimeoutError) for one in answers)
        self._left[name] = requests_left(self._left[name], told, num_silent)


def _deploy(config: ServeDeploySchema) -> None:
    """Start Serve, and have it build the applications while its proxy starts."""
    with ThreadPoolExecutor(1) as executor:
        starting = executor.submit(
            serve_start,
            http_options=config.http_options.model_dump(),
            proxy_location=config.proxy_location,
            grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
            controller_options=config.controller_options,
        )
        ray.get(_controller(starting).apply_config.remote(config))
        starting.result()


def _controller(starting: Future[Any]) -> Any:
    """Serve's controller, as soon as it has been asked for."""
    while True:
        try:
            return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            if starting.done():
                starting.result()
            time.sleep(_POLL_S)


def _tell_states(tell: Callable[[Event], None], rooms: "_Rooms", until_s: float = math.inf) -> None:
    """Tell each change of an application's status, until there is none to wait for, or that moment."""
    known: dict[str, ApplicationState] = {}
    while time.monotonic() < until_s and (not known or any(one.status not in _FINAL for one in known.values())):
        time.sleep(_STATES_POLL_S)
        reasons = rooms.look()
        for name, application in serve.status().applications.items():
            state = ApplicationState(name, application.status.value, application.message, reasons.get(name, ""))
            if name not in known or (known[name].status, known[name].room) != (state.status, state.room):
                known[name] = state
                tell(state)


class _Rooms:
    """Why replicas wait for a place, looked at seldom: where there is room it takes no time."""

    def __init__(self) -> None:
        self._waiting = WaitingPlaces()
        self._told: dict[str, str] = {}
        self._looked_s = time.monotonic()

    def look(self) -> dict[str, str]:
        """By application, of those that have waited for a while."""
        if time.monotonic() - self._looked_s >= _ROOMS_POLL_S:
            self._looked_s = time.monotonic()
            self._told, self._waiting = self._waiting.take(room_reasons(listed_applications(_get_global_client())))
        return self._told
