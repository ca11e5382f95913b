"""Serve and the applications of a Serve file, in the child of `rayshard serve`."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

from serve_app.cli.serve_events import ApplicationState, DashboardUp, Event, Phase

_POLL_S = 0.1
_STATES_POLL_S = 0.5  # a look costs the controller and this process some 20 ms of CPU
_SETTLED_POLL_S = 10.0
_DASHBOARD_S = 15.0  # a start that takes longer can be looked at
_FINAL = ("RUNNING", "DEPLOY_FAILED")


def serve_until_interrupted(
    path: Path,
    tell: Callable[[Event], None],
    start_dashboard: Callable[[], str | None],
    when_settled: Callable[[], None],
) -> None:
    """Deploy a Serve file; on SIGINT, let the requests at hand end and stop Serve.

    start_dashboard: gives its URL. when_settled: called when no application is being deployed any more.
    """
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    try:
        _deploy(config)
        tell(Phase(f"loading {', '.join(application.name for application in config.applications)}"))
        _tell_states(tell, until_s=time.monotonic() + _DASHBOARD_S)
        dashboard_url = start_dashboard()
        if dashboard_url is not None:
            tell(DashboardUp(dashboard_url))
        _tell_states(tell)
        when_settled()
        while True:
            time.sleep(_SETTLED_POLL_S)
    except KeyboardInterrupt:
        serve.shutdown()


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


def _tell_states(tell: Callable[[Event], None], until_s: float = math.inf) -> None:
    """Tell each change of an application's status, until there is none to wait for, or that moment."""
    known: dict[str, ApplicationState] = {}
    while time.monotonic() < until_s and (not known or any(one.status not in _FINAL for one in known.values())):
        time.sleep(_STATES_POLL_S)
        for name, application in serve.status().applications.items():
            state = ApplicationState(name, application.status.value, application.message)
            if name not in known or known[name].status != state.status:
                known[name] = state
                tell(state)
