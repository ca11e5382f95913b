"""The applications that Serve runs, as a Gateway knows them: which models there are, and how their copies do."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.backend.protocol import HealthReport
from serve_app.backend.replica_calls import FRESH_S, ReplicaCalls
from serve_app.checkpoints.source import local_directory
from serve_app.config.environment import read_environment
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState, ModelDescription
from serve_app.wire.links import TokenReceiver
from serve_app.wire.messages import StateMessage

logger = logging.getLogger(__name__)

ROUTER_NAME = "Router"
PREPROCESSOR_NAME = "Preprocessor"
GRAPH_NAME = "Graph"

_DISCOVERY_INTERVAL_S = 1.0  # while a model has not described itself
_SETTLED_INTERVAL_S = 3.0  # a look costs Serve's controller and this process some 40 ms of CPU
_NODES_INTERVAL_S = 10.0
_REGISTER_INTERVAL_S = 5.0
_SERVE_TIMEOUT_S = 20.0


@dataclass(slots=True)
class ServedApplication:
    """An application as Serve shows it, and what its replicas have told."""

    main: str  # the deployment that describes its models: Router or Graph
    handles: dict[str, DeploymentHandle]  # by deployment
    calls: dict[str, ReplicaCalls]  # by deployment: Router, Preprocessor
    status: str
    message: str
    descriptions: list[ModelDescription] = field(default_factory=list)
    registered_s: float = 0.0
    registering: asyncio.Task[None] | None = None
    copies: dict[str, tuple[float, CopyState]] = field(default_factory=dict)  # of the Router: when it was told

    @property
    def handle(self) -> DeploymentHandle:
        """Of the deployment that describes the models."""
        return self.handles[self.main]

    def fresh_copies(self) -> list[CopyState]:
        """Copies that have told their state just now."""
        now = time.monotonic()
        return [state for told_s, state in self.copies.values() if now - told_s < FRESH_S]


class ServeApplications:
    """Finds the applications through Serve, and registers with their replicas."""

    def __init__(self, receiver: TokenReceiver, make_calls: Callable[[], ReplicaCalls]) -> None:
        self._receiver = receiver
        self._make_calls = make_calls
        self._applications: dict[str, ServedApplication] = {}
        self._is_discovered = False
        self._nodes_counted_s = -_NODES_INTERVAL_S
        self.by_model: dict[str, ServedApplication] = {}
        self.descriptions: list[ModelDescription] = []

    @property
    def all(self) -> list[ServedApplication]:
        """All that run one of our deployments."""
        return list(self._applications.values())

    async def find_running_models(self) -> None:
        """Return when every running model has described itself."""
        await self.discover()
        running = [application for application in self._applications.values() if application.status == "RUNNING"]
        await asyncio.gather(*(one.registering for one in running if one.registering is not None))

    async def discover_forever(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.discover()
            except Exception:  # Serve's controller may be restarting: look again
                logger.warning("looking for models failed", exc_info=True)
            is_settled = all(one.descriptions for one in self._applications.values())
            await asyncio.sleep(_SETTLED_INTERVAL_S if is_settled else _DISCOVERY_INTERVAL_S)

    async def discover(self) -> None:
        """Compare what Serve runs with what is known; register with replicas that are new or due."""
        status = await asyncio.to_thread(serve.status)
        if time.monotonic() - self._nodes_counted_s > _NODES_INTERVAL_S:
            self._nodes_counted_s = time.monotonic()
            if len(await asyncio.to_thread(ray.nodes)) > 1:
                self._receiver.listen_wide()
        found = {
            name: app
            for name, app in status.applications.items()
            if {ROUTER_NAME, GRAPH_NAME} & app.deployments.keys() and app.status.value != "DELETING"
        }
        for name in self._applications.keys() - found.keys():
            del self._applications[name]
        for name, app in found.items():
            known = self._applications.get(name)
            if known is None or known.handles.keys() != app.deployments.keys():
                known = self._applications[name] = self._new_application(name, list(app.deployments))
            known.status, known.message = app.status.value, app.message
        self._is_discovered = True
        for name, application in self._applications.items():
            self._register_if_due(name, application)
        self._index()

    def take_state(self, message: StateMessage) -> None:
        """A replica has told how it is."""
        application = self._applications.get(message.application)
        if application is None:
            return
        state = message.state
        is_gone = state.state == "gone"
        calls = application.calls.get(message.deployment)
        if calls is not None:
            calls.see(state.replica_id, message.calls, is_ready=state.state == "ready", is_gone=is_gone)
        if message.deployment == ROUTER_NAME:
            if is_gone:
                application.copies.pop(state.replica_id, None)
            else:
                application.copies[state.replica_id] = (time.monotonic(), state)

    def health(self) -> HealthReport:
        """Healthy when every application of a model has a copy that says that it is ready."""
        if not self._is_discovered:
            return HealthReport(False, {}, "the models are still being looked for", is_discovering=True)
        models: dict[str, list[CopyState]] = {}
        ill = []
        for name, application in self._applications.items():
            fresh = application.fresh_copies()
            for label in [description.name for description in application.descriptions] or [name]:
                if label in models:
                    ill.append(f"{name}: its model name {label} is taken by another application; rename one")
                    continue
                models[label] = fresh
                reason = _why_ill(application, fresh)
                if reason is not None:
                    ill.append(f"{label}: {reason}")
        if not models:
            return HealthReport(False, {}, "no model is deployed")
        is_discovering = any(not application.descriptions for application in self._applications.values())
        return HealthReport(not ill, models, "; ".join(ill), is_discovering)

    def _new_application(self, name: str, deployments: list[str]) -> ServedApplication:
        handles = {deployment: serve.get_deployment_handle(deployment, name) for deployment in deployments}
        main = ROUTER_NAME if ROUTER_NAME in handles else GRAPH_NAME
        calls = {one: self._make_calls() for one in handles if one in (ROUTER_NAME, PREPROCESSOR_NAME)}
        return ServedApplication(main, handles, calls, "", "")

    def _register_if_due(self, name: str, application: ServedApplication) -> None:
        """One task for each application: none waits for another's replicas."""
        interval = _REGISTER_INTERVAL_S if application.descriptions else _DISCOVERY_INTERVAL_S
        is_under_way = application.registering is not None and not application.registering.done()
        if is_under_way or time.monotonic() - application.registered_s < interval:
            return
        application.registering = asyncio.create_task(self._register(name, application))

    async def _register(self, name: str, application: ServedApplication) -> None:
        try:
            async with asyncio.timeout(_SERVE_TIMEOUT_S):
                if PREPROCESSOR_NAME in application.handles:
                    await _broadcast(application.handles[PREPROCESSOR_NAME], self._receiver.address)
                told = await _broadcast(application.handle, self._receiver.address)
            if told:
                oldest = min(told, key=lambda one: one[0].created_s)
                if [one.created_s for one in oldest] != [one.created_s for one in application.descriptions]:
                    application.descriptions = await asyncio.to_thread(_on_this_node, oldest)
                self._index()
        except (RayError, RayServeException, DeploymentUnavailableError, TimeoutError):
            logger.debug("no replica answered application=%s", name)
        except Exception:  # its files cannot be had here: the others are served all the same
            logger.exception("model not usable application=%s", name)
        finally:
            application.registered_s = time.monotonic()

    def _index(self) -> None:
        """Tables by model name; of two applications with one name the first stays."""
        by_model: dict[str, ServedApplication] = {}
        descriptions: list[ModelDescription] = []
        now = time.monotonic()
        for application in self._applications.values():
            for replica_id, (told_s, _state) in list(application.copies.items()):
                if now - told_s > 10 * FRESH_S:
                    del application.copies[replica_id]
            for description in application.descriptions:
                if by_model.setdefault(description.name, application) is application:
                    descriptions.append(description)
        self.by_model, self.descriptions = by_model, descriptions


async def _broadcast(handle: DeploymentHandle, address: LinkAddress) -> list[list[ModelDescription]]:
    """What all replicas of a deployment that can be reached say of their models."""
    answers = await handle.broadcast("register", address).results_async(return_exceptions=True)
    return [answer for answer in answers if isinstance(answer, list) and answer]


def _on_this_node(descriptions: list[ModelDescription]) -> list[ModelDescription]:
    """The descriptions with a source_dir that this node has: tokenizer and chat template are read from it."""
    placed = []
    for description in descriptions:
        if description.source is not None:
            directory = local_directory(description.source, read_environment(), needs_weights=False)
            description = replace(description, source_dir=str(directory))
        placed.append(description)
    return placed


def _why_ill(application: ServedApplication, fresh: list[CopyState]) -> str | None:
    """Why an application cannot answer; None: it can."""
    if application.main == GRAPH_NAME:
        is_running = application.status == "RUNNING" and application.descriptions
        return None if is_running else f"the graph is {application.status} {application.message[:500]}".strip()
    if any(state.state == "ready" for state in fresh):
        return None
    details = [f"{state.state} ({state.detail})" for state in fresh]
    if details:
        return ", ".join(details)
    return f"no copy answers; application is {application.status} {application.message[:500]}".strip()
