"""The applications that Serve runs, as a backend knows them: found again and again, and registered with."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from serve_app.backend.application import GRAPH_NAME, PREPROCESSOR_NAME, ROUTER_NAME, Application
from serve_app.backend.control import Control, RunningApplication
from serve_app.backend.health import health_of, may_have_more_models
from serve_app.backend.known_replicas import FRESH_S
from serve_app.backend.protocol import HealthReport
from serve_app.backend.replica_calls import ReplicaCalls
from serve_app.errors import UnavailableError
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription
from serve_app.wire.messages import StateMessage

logger = logging.getLogger(__name__)

MAIN_OF_BUILDER = {  # where Serve lists no deployment yet
    "serve_app.app:build_model": ROUTER_NAME,
    "serve_app.app:build_models": ROUTER_NAME,
    "serve_app.app:build_graph": GRAPH_NAME,
}

_DISCOVERY_INTERVAL_S = 1.0  # while an application is not settled
_SETTLED_INTERVAL_S = 3.0
_REGISTER_INTERVAL_S = 5.0
_RENEW_INTERVAL_S = 10.0  # of what replicas know of this process, over the links; they forget it after thirty
_REGISTER_LIMIT_S = 20.0
_FORGOTTEN_S = 30.0  # a copy that has said nothing for that long is not shown any more


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
        self._is_due = asyncio.Event()  # a look at Serve, before its time
        self._is_told = asyncio.Event()  # a state
        self._is_indexed = asyncio.Event()  # set, and replaced by a new one, whenever the tables are made anew
        self._renewed_s = time.monotonic()
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
        """Return when every model that runs has described itself and a copy of it has told how it is."""
        await self.discover()
        await asyncio.gather(*(one.registering for one in self.all if one.registering is not None))
        with contextlib.suppress(TimeoutError):  # that comes by another road than the description
            async with asyncio.timeout(FRESH_S):
                while any(one.descriptions and not one.has_spoken for one in self._applications.values()):
                    self._is_told.clear()
                    await self._is_told.wait()

    async def discover_forever(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.discover()
            except Exception:  # Serve's controller may be restarting: look again
                logger.warning("looking for models failed", exc_info=True)
            is_settled = all(one.is_settled for one in self._applications.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLED_INTERVAL_S if is_settled else _DISCOVERY_INTERVAL_S):
                    await self._is_due.wait()

    async def discover(self) -> None:
        """Compare what Serve lists with what is known; register with replicas that are new or due."""
        self._is_due.clear()
        asked_s = time.monotonic()
        is_repairing = any(
            copy.state == "rebuilding" for one in self._applications.values() for copy in one.fresh_copies()
        )
        is_calm = all(one.is_calm for one in self._applications.values())
        found = await self._control.applications(is_repairing=is_repairing, is_calm=is_calm)
        listed = {name: app for name, app in found.items() if app.status != "DELETING"}
        for name, known in list(self._applications.items()):
            app = listed.get(name)
            if app is None or (app.deployments and self._main_of(app) != known.main):
                self._leave(self._applications.pop(name))
        for name, app in listed.items():
            main = self._main_of(app)
            if name not in self._applications and main is not None:
                is_new = self._is_discovered and app.status == "RUNNING"  # it was deployed between two looks
                self._applications[name] = Application(name, main, deployed_s=asked_s if is_new else None)
            if name in self._applications:
                self._applications[name].looked_s = asked_s
                self._update(self._applications[name], app)
        self._leaving = [one for one in self._leaving if one.has_calls]
        self._is_discovered = True
        for application in self._applications.values():
            self._register_if_due(application)
        self._index()

    async def wait_for(self, model: str) -> None:
        """Return when the model is known, or no application is left that may yet turn out to serve it."""
        while model not in self.descriptions and (
            not self._is_discovered or may_have_more_models(list(self._applications.values()))
        ):
            await self._is_indexed.wait()

    def renew(self) -> None:
        """Tell all replicas that are heard of, now and then, that they are. Nothing of Serve, which may be away."""
        if time.monotonic() - self._renewed_s >= _RENEW_INTERVAL_S:
            self._renewed_s = time.monotonic()
            for application in self.all:
                for calls in application.calls.values():
                    calls.renew()

    def excuse(self, late_s: float) -> None:
        """This process itself has stood still for so long: that is not the copies' silence."""
        for application in self.all if late_s else ():
            application.excuse(late_s)

    def take_state(self, message: StateMessage) -> None:
        """A replica has told how it is."""
        self._is_told.set()
        state = message.state
        for one in self.all:
            calls = one.calls.get(message.deployment) if one.name == message.application else None
            if calls is not None:
                calls.see(message.calls, state, message.model_version)
        application = self._applications.get(message.application)
        if application is not None and message.deployment == application.main:
            calls = application.calls.get(application.main)
            if calls is not None and calls.is_outlived(message.calls, state):
                return
            application.has_spoken = True
            told_s, known = application.copies.get(state.replica_id, (0.0, None))
            if state.state == "gone":
                application.copies.pop(state.replica_id, None)
            else:
                application.copies[state.replica_id] = (time.monotonic(), state)
            if known is not None and application.leaves(told_s, known, state):
                application.left_s = time.monotonic()
                self._is_due.set()

    def health(self) -> HealthReport:
        """Healthy when every application that has run has a copy that says that it is ready."""
        if not self._is_discovered:
            return HealthReport(False, {}, "the models are still being looked for", is_discovering=True)
        return health_of(list(self._applications.values()))

    def _main_of(self, app: RunningApplication) -> str | None:
        """Its deployment that describes models; None: it has none, or none that counts here."""
        found = app.deployments or (MAIN_OF_BUILDER.get(app.import_path, ""),)
        return next((name for name in (ROUTER_NAME, GRAPH_NAME) if name in found and name in self._mains), None)

    def _update(self, application: Application, app: RunningApplication) -> None:
        """Take over what Serve lists. Deployments that stay keep their calls; where it lists none, all stay."""
        application.see(app.status, app.message, app.replicas)
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
        elif app.status == "RUNNING" and application.main in app.waking:  # it slept for less than from look to look
            calls.set_asleep(True)

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
            or not application.has_strangers
            or time.monotonic() - application.registered_s < interval_s
        ):
            return
        application.registering = asyncio.create_task(self._register(application))

    async def _register(self, application: Application) -> None:
        listed = application.listed
        try:
            async with asyncio.timeout(_REGISTER_LIMIT_S):
                told: list[list[ModelDescription]] = []
                for deployment in list(application.calls):
                    answers = await self._control.register(application.name, deployment, self._own_address())
                    told += [answer for answer in answers if answer]
            is_same = listed == application.registered
            application.registered, application.num_registered = listed, 1 + is_same * application.num_registered
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
        self._is_indexed.set()
        self._is_indexed = asyncio.Event()
