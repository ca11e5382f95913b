"""The applications that Serve runs, as a backend knows them: which models there are, and how their copies do."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serve_app.backend.control import Control, RunningApplication
from serve_app.backend.protocol import HealthReport, Newcomer
from serve_app.backend.replica_calls import FRESH_S, ReplicaCalls
from serve_app.errors import UnavailableError
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState, ModelDescription
from serve_app.wire.messages import StateMessage

logger = logging.getLogger(__name__)

ROUTER_NAME = "Router"
PREPROCESSOR_NAME = "Preprocessor"
GRAPH_NAME = "Graph"
MAIN_OF_BUILDER = {  # where Serve lists no deployment yet
    "serve_app.app:build_model": ROUTER_NAME,
    "serve_app.app:build_models": ROUTER_NAME,
    "serve_app.app:build_graph": GRAPH_NAME,
}

_DISCOVERY_INTERVAL_S = 1.0  # while an application is not settled
_SETTLED_INTERVAL_S = 3.0  # a look costs Serve's controller and this process some 40 ms of CPU
_REGISTER_INTERVAL_S = 5.0
_REGISTER_LIMIT_S = 20.0
_FIRST_WORD_S = 10.0  # until a copy that has described its model is to have told its state
_FORGOTTEN_S = 30.0  # a copy that has said nothing for that long is not shown any more
_MAX_REASON_CHARS = 500  # of what Serve says
_TRACEBACK_FRAME = re.compile(r'^  File ".*(?:\n[ \t].*)*\n', re.MULTILINE)


@dataclass(slots=True)
class Application:
    """An application, and what its replicas have told."""

    name: str
    main: str  # the deployment that describes its models: Router or Graph
    calls: dict[str, ReplicaCalls] = field(default_factory=dict)  # by deployment
    status: str = ""
    message: str = ""
    room: str = ""  # why a replica, or a part of one, is not placed; empty: all are
    descriptions: list[ModelDescription] = field(default_factory=list)
    described_s: float = 0.0  # when it had them first
    has_spoken: bool = False  # a copy has told its state
    registered_s: float = 0.0
    registering: asyncio.Task[None] | None = None
    copies: dict[str, tuple[float, CopyState]] = field(default_factory=dict)  # of `main`: when it was told
    has_none: bool = False  # Serve keeps no replica of `main` at the moment

    @property
    def labels(self) -> list[str]:
        """What health calls it: its models, or itself while it has not told them; a newcomer has none yet."""
        if self.is_newcomer:
            return []
        return [description.name for description in self.descriptions] or [self.name]

    @property
    def is_newcomer(self) -> bool:
        """Whether no copy has ever run, and that is not an outage: Serve is still at it, or has given up."""
        if self.descriptions:  # they come with an answer, the first state by a link that is being connected
            return not self.has_spoken and time.monotonic() - self.described_s < _FIRST_WORD_S
        return self.status in ("DEPLOYING", "DEPLOY_FAILED")

    @property
    def is_settled(self) -> bool:
        """Whether no copy is looked for: none is being deployed, and no call waits for one."""
        if self.status == "DEPLOYING" or (not self.descriptions and self.status != "DEPLOY_FAILED"):
            return False
        return not self.has_calls or all(calls.num_ready for calls in self.calls.values())

    @property
    def is_asleep(self) -> bool:
        """Whether it has no copy because nobody has asked, or the one that somebody waits for is starting."""
        return self.main in self.calls and self.calls[self.main].is_asleep

    @property
    def wants_copy(self) -> bool:
        """Whether a copy is to start without a request: one that sleeps is not known here yet."""
        return self.has_none and not self.descriptions

    @property
    def has_calls(self) -> bool:
        """Whether calls are under way."""
        return any(calls.num_calls for calls in self.calls.values())

    @property
    def is_routed(self) -> bool:
        """Whether copies of its model are chosen by what they hold."""
        is_wanted = any(description.routed_block_size is not None for description in self.descriptions)
        return is_wanted and ROUTER_NAME in self.calls

    @property
    def reason(self) -> str:
        """Why it waits for room, else the end of what Serve says, of a traceback the error; "" when that is nothing."""
        if self.room:
            return self.room
        return _TRACEBACK_FRAME.split(self.message)[-1].strip()[-_MAX_REASON_CHARS:]

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
        self._leaving: list[Application] = []  # with what is left of deployments that are gone, while calls are open
        self._is_discovered = False
        self.by_model: dict[str, Application] = {}
        self.descriptions: dict[str, ModelDescription] = {}  # by model

    @property
    def all(self) -> list[Application]:
        """All that run one of our deployments, and what has left with calls under way."""
        return [*self._applications.values(), *self._leaving]

    @property
    def of_models(self) -> list[Application]:
        """Those that serve a model, each once."""
        return [one for one in self._applications.values() if one in self.by_model.values()]

    async def find_running_models(self) -> None:
        """Return when every model that runs has described itself."""
        await self.discover()
        await asyncio.gather(*(one.registering for one in self.all if one.registering is not None))

    async def discover_forever(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.discover()
            except Exception:  # Serve's controller may be restarting: look again
                logger.warning("looking for models failed", exc_info=True)
            is_settled = all(one.is_settled for one in self._applications.values())
            await asyncio.sleep(_SETTLED_INTERVAL_S if is_settled else _DISCOVERY_INTERVAL_S)

    async def discover(self) -> None:
        """Compare what Serve lists with what is known; register with replicas that are new or due."""
        is_repairing = any(
            copy.state == "rebuilding" for one in self._applications.values() for copy in one.fresh_copies()
        )
        found = await self._control.applications(is_repairing=is_repairing)
        listed = {name: app for name, app in found.items() if app.status != "DELETING"}
        for name, known in list(self._applications.items()):
            app = listed.get(name)
            if app is None or (app.deployments and self._main_of(app) != known.main):
                self._leave(self._applications.pop(name))
        for name, app in listed.items():
            main = self._main_of(app)
            if name not in self._applications and main is not None:
                self._applications[name] = Application(name, main)
            if name in self._applications:
                self._update(self._applications[name], app)
        self._leaving = [one for one in self._leaving if one.has_calls]
        self._is_discovered = True
        for application in self._applications.values():
            self._register_if_due(application)
        self._index()

    def take_state(self, message: StateMessage) -> None:
        """A replica has told how it is."""
        state = message.state
        for one in self.all:
            calls = one.calls.get(message.deployment) if one.name == message.application else None
            if calls is not None:
                calls.see(message.calls, state, message.model_version)
        application = self._applications.get(message.application)
        if application is not None and message.deployment == application.main:
            application.has_spoken = True
            if state.state == "gone":
                application.copies.pop(state.replica_id, None)
            else:
                application.copies[state.replica_id] = (time.monotonic(), state)

    def health(self) -> HealthReport:
        """Healthy when every application that has run has a copy that says that it is ready."""
        if not self._is_discovered:
            return HealthReport(False, {}, "the models are still being looked for", is_discovering=True)
        known = list(self._applications.values())
        if not known:
            return HealthReport(False, {}, "no model is deployed")
        models: dict[str, list[CopyState]] = {}
        num_resumes: dict[str, int] = {}
        num_choices: dict[str, dict[str, int]] = {}
        ill: list[str] = []
        for application in known:
            for label in application.labels:
                if label in models:
                    ill.append(
                        f"{application.name}: its model name {label} is taken by another application; rename one"
                    )
                    continue
                models[label] = application.fresh_copies()
                num_resumes[label] = sum(calls.num_resumes for calls in application.calls.values())
                if application.is_routed:
                    num_choices[label] = application.calls[ROUTER_NAME].chooser.counts()
                reason = _why_ill(application, models[label])
                if reason is not None:
                    ill.append(f"{label}: {reason}")
        asleep = [label for one in known if one.is_asleep for label in one.labels]
        newcomers = {one.name: _newcomer(one) for one in known if one.is_newcomer}
        detail = "; ".join([*ill, *(note for one in known if (note := _note(one)) is not None)])
        is_discovering = any(not one.descriptions and one.status != "DEPLOY_FAILED" for one in known)
        is_healthy = bool(models) and not ill
        return HealthReport(is_healthy, models, detail, is_discovering, newcomers, asleep, num_resumes, num_choices)

    def _main_of(self, app: RunningApplication) -> str | None:
        """Its deployment that describes models; None: it has none, or none that counts here."""
        found = app.deployments or (MAIN_OF_BUILDER.get(app.import_path, ""),)
        return next((name for name in (ROUTER_NAME, GRAPH_NAME) if name in found and name in self._mains), None)

    def _update(self, application: Application, app: RunningApplication) -> None:
        """Take over what Serve lists. Deployments that stay keep their calls; where it lists none, all stay."""
        application.status, application.message = app.status, app.message
        if app.room != application.room:
            application.room = app.room
            logger.warning("application=%s %s", application.name, app.room or "has found room")
        if not app.deployments:
            return
        for name in (ROUTER_NAME, PREPROCESSOR_NAME, GRAPH_NAME):
            if name in app.deployments and name not in application.calls:
                application.calls[name] = self._make_calls()
        self._see_sleep(application, app)
        gone = application.calls.keys() - set(app.deployments)
        self._leave(
            Application(application.name, application.main, {name: application.calls.pop(name) for name in gone})
        )

    def _see_sleep(self, application: Application, app: RunningApplication) -> None:
        """It sleeps from when Serve keeps no replica until one is ready, unless that cannot be started."""
        calls = application.calls[application.main]
        application.has_none = application.main in app.asleep
        if application.has_none:
            calls.set_asleep(True)
        elif app.status in ("UNHEALTHY", "DEPLOY_FAILED"):
            calls.set_asleep(False)

    def _leave(self, application: Application) -> None:
        """Its calls may end: they hear of its replicas' states as before, until there is none under way."""
        if application.has_calls:
            self._leaving.append(application)

    def _register_if_due(self, application: Application) -> None:
        """One task for each application: none waits for another's replicas."""
        interval_s = _REGISTER_INTERVAL_S if application.is_settled else _DISCOVERY_INTERVAL_S
        is_under_way = application.registering is not None and not application.registering.done()
        if (
            not application.calls
            or application.has_none
            or is_under_way
            or time.monotonic() - application.registered_s < interval_s
        ):
            return
        application.registering = asyncio.create_task(self._register(application))

    async def _register(self, application: Application) -> None:
        try:
            async with asyncio.timeout(_REGISTER_LIMIT_S):
                told: list[list[ModelDescription]] = []
                for deployment in list(application.calls):
                    answers = await self._control.register(application.name, deployment, self._own_address())
                    told += [answer for answer in answers if answer]
            if told:
                oldest = min(told, key=lambda models: models[0].created_s)
                if [one.created_s for one in oldest] != [one.created_s for one in application.descriptions]:
                    application.described_s = application.described_s or time.monotonic()
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
    if _has_ready(fresh) or application.is_asleep:
        return None
    details = [f"{state.state} ({state.detail})" for state in fresh]
    if details:
        return ", ".join([*details, *([application.room] if application.room else [])])
    return f"no copy answers; application is {application.status} {application.reason}".strip()


def _note(application: Application) -> str | None:
    """What is to be told of an application without its being ill; None: nothing."""
    if application.is_newcomer:
        newcomer = _newcomer(application)
        return f"{application.name}: {newcomer.state}" + (f" ({newcomer.detail})" if newcomer.detail else "")
    if application.is_asleep:
        state = "asleep" if application.has_none else "waking"
        return f"{', '.join(application.labels)}: {state}"
    if application.status == "DEPLOY_FAILED" and _has_ready(application.fresh_copies()):
        return f"{application.name}: its last deploy failed, copies that are ready go on ({application.reason})"
    return (
        f"{application.name}: {application.room}"
        if application.room and _has_ready(application.fresh_copies())
        else None
    )


def _has_ready(copies: list[CopyState]) -> bool:
    return any(copy.state == "ready" for copy in copies)


def _newcomer(application: Application) -> Newcomer:
    if application.room:
        return Newcomer("waiting", application.room)
    return Newcomer("failed" if application.status == "DEPLOY_FAILED" else "starting", application.reason)
