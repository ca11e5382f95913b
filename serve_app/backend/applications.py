"""The applications that Serve runs, as a backend knows them: which models there are, and how their copies do."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serve_app.backend.control import Control, RunningApplication
from serve_app.backend.protocol import HealthReport
from serve_app.backend.replica_calls import FRESH_S, ReplicaCalls
from serve_app.errors import UnavailableError
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState, ModelDescription
from serve_app.wire.messages import StateMessage

logger = logging.getLogger(__name__)

ROUTER_NAME = "Router"
PREPROCESSOR_NAME = "Preprocessor"
GRAPH_NAME = "Graph"

_DISCOVERY_INTERVAL_S = 1.0  # while a model has not described itself
_SETTLED_INTERVAL_S = 3.0  # a look costs Serve's controller and this process some 40 ms of CPU
_REGISTER_INTERVAL_S = 5.0
_REGISTER_LIMIT_S = 20.0
_FORGOTTEN_S = 30.0  # a copy that has said nothing for that long is not shown any more


@dataclass(slots=True)
class Application:
    """An application, and what its replicas have told."""

    name: str
    main: str  # the deployment that describes its models: Router or Graph
    deployments: tuple[str, ...]
    calls: dict[str, ReplicaCalls]  # by deployment
    status: str = ""
    message: str = ""
    descriptions: list[ModelDescription] = field(default_factory=list)
    registered_s: float = 0.0
    registering: asyncio.Task[None] | None = None
    copies: dict[str, tuple[float, CopyState]] = field(default_factory=dict)  # of `main`: when it was told

    def fresh_copies(self) -> list[CopyState]:
        """Copies that have told their state just now."""
        now_s = time.monotonic()
        return [state for told_s, state in self.copies.values() if now_s - told_s < FRESH_S]


class Applications:
    """Finds the applications through Serve, and registers with their replicas.

    place: a model's description for this node, whose files may lie elsewhere; may block. mains: the deployments whose
    applications count.
    """

    def __init__(
        self,
        control: Control,
        own_address: Callable[[], LinkAddress],
        make_calls: Callable[[], ReplicaCalls],
        place: Callable[[ModelDescription], ModelDescription],
        mains: frozenset[str] = frozenset({ROUTER_NAME, GRAPH_NAME}),
    ) -> None:
        self._control = control
        self._own_address = own_address
        self._make_calls = make_calls
        self._place = place
        self._mains = mains
        self._applications: dict[str, Application] = {}
        self._is_discovered = False
        self.by_model: dict[str, Application] = {}
        self.descriptions: dict[str, ModelDescription] = {}  # by model

    @property
    def all(self) -> list[Application]:
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
        found = {
            name: app
            for name, app in (await self._control.applications()).items()
            if self._mains.intersection(app.deployments) and app.status != "DELETING"
        }
        for name in self._applications.keys() - found.keys():
            del self._applications[name]
        for name, app in found.items():
            known = self._applications.get(name)
            if known is None or set(known.deployments) != set(app.deployments):
                known = self._applications[name] = self._new_application(name, app)
            known.status, known.message = app.status, app.message
        self._is_discovered = True
        for application in self._applications.values():
            self._register_if_due(application)
        self._index()

    def take_state(self, message: StateMessage) -> None:
        """A replica has told how it is."""
        application = self._applications.get(message.application)
        if application is None:
            return
        state = message.state
        calls = application.calls.get(message.deployment)
        if calls is not None:
            calls.see(message.calls, state)
        if message.deployment == application.main:
            if state.state == "gone":
                application.copies.pop(state.replica_id, None)
            else:
                application.copies[state.replica_id] = (time.monotonic(), state)

    def health(self) -> HealthReport:
        """Healthy when every application has a copy that says that it is ready."""
        if not self._is_discovered:
            return HealthReport(False, {}, "the models are still being looked for", is_discovering=True)
        models: dict[str, list[CopyState]] = {}
        ill = []
        for application in self._applications.values():
            fresh = application.fresh_copies()
            for label in [description.name for description in application.descriptions] or [application.name]:
                if label in models:
                    ill.append(
                        f"{application.name}: its model name {label} is taken by another application; rename one"
                    )
                    continue
                models[label] = fresh
                reason = _why_ill(application, fresh)
                if reason is not None:
                    ill.append(f"{label}: {reason}")
        if not models:
            return HealthReport(False, {}, "no model is deployed")
        is_discovering = any(not application.descriptions for application in self._applications.values())
        return HealthReport(not ill, models, "; ".join(ill), is_discovering)

    def _new_application(self, name: str, app: RunningApplication) -> Application:
        main = ROUTER_NAME if ROUTER_NAME in app.deployments else GRAPH_NAME
        ours = (ROUTER_NAME, PREPROCESSOR_NAME, GRAPH_NAME)
        calls = {one: self._make_calls() for one in app.deployments if one in ours}
        return Application(name, main, app.deployments, calls)

    def _register_if_due(self, application: Application) -> None:
        """One task for each application: none waits for another's replicas."""
        interval_s = _REGISTER_INTERVAL_S if application.descriptions else _DISCOVERY_INTERVAL_S
        is_under_way = application.registering is not None and not application.registering.done()
        if is_under_way or time.monotonic() - application.registered_s < interval_s:
            return
        application.registering = asyncio.create_task(self._register(application))

    async def _register(self, application: Application) -> None:
        try:
            async with asyncio.timeout(_REGISTER_LIMIT_S):
                told: list[list[ModelDescription]] = []
                for deployment in application.calls:
                    answers = await self._control.register(application.name, deployment, self._own_address())
                    told += [answer for answer in answers if answer]
            if told:
                oldest = min(told, key=lambda models: models[0].created_s)
                if [one.created_s for one in oldest] != [one.created_s for one in application.descriptions]:
                    application.descriptions = [await asyncio.to_thread(self._place, one) for one in oldest]
                self._index()
        except (UnavailableError, TimeoutError):
            logger.debug("no replica answered application=%s", application.name)
        except Exception:  # its files cannot be had here: the others are served all the same
            logger.exception("model not usable application=%s", application.name)
        finally:
            application.registered_s = time.monotonic()

    def _index(self) -> None:
        """Tables by model name; of two applications with one name the first stays."""
        by_model: dict[str, Application] = {}
        descriptions: dict[str, ModelDescription] = {}
        now_s = time.monotonic()
        for application in self._applications.values():
            for replica_id, (told_s, _state) in list(application.copies.items()):
                if now_s - told_s > _FORGOTTEN_S:
                    del application.copies[replica_id]
            for description in application.descriptions:
                if by_model.setdefault(description.name, application) is application:
                    descriptions[description.name] = description
        self.by_model, self.descriptions = by_model, descriptions


def _why_ill(application: Application, fresh: list[CopyState]) -> str | None:
    """Why an application cannot answer; None: it can."""
    if any(state.state == "ready" for state in fresh):
        return None
    details = [f"{state.state} ({state.detail})" for state in fresh]
    if details:
        return ", ".join(details)
    return f"no copy answers; application is {application.status} {application.message[:500]}".strip()
