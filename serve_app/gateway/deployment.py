"""The Gateway deployment: finds the models through Serve, and carries requests to their Routers."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address
from starlette.applications import Starlette

from serve_app.config import GatewayConfig, read_environment
from serve_app.errors import InternalError, ModelNotFoundError, QueueFullError, RayshardError, UnavailableError
from serve_app.gateway.backend import GenerationStream, HealthReport
from serve_app.gateway.http import build_http_app
from serve_app.gateway.token_streams import TokenStream
from serve_app.observability import configure_logging
from serve_app.planning.source import local_directory
from serve_app.types import CopyState, GenerateRequest, ModelDescription
from serve_app.wire.links import TokenReceiver
from serve_app.wire.messages import ToGateway, TokenBatch, unpack_batch

logger = logging.getLogger(__name__)

ROUTER_NAME = "Router"

_DISCOVERY_INTERVAL_S = 1.0  # while a model has not described itself
_SETTLED_INTERVAL_S = 3.0  # a look costs Serve's controller and this process some 40 ms of CPU
_NODES_INTERVAL_S = 10.0
_REGISTER_INTERVAL_S = 5.0
_STATE_FRESH_S = 3.0  # a copy that has said nothing for so long counts as gone
_SERVE_TIMEOUT_S = 20.0
_FIRST_LOOK_S = 10.0


@dataclass(slots=True)
class _Application:
    """A model's application as Serve shows it, and what its Routers have told."""

    handle: DeploymentHandle
    status: str
    message: str
    description: ModelDescription | None = None
    registered_s: float = 0.0
    registering: asyncio.Task[None] | None = None
    copies: dict[str, tuple[float, CopyState]] = field(default_factory=dict)  # by replica: when it was told

    def fresh_copies(self) -> list[CopyState]:
        """Copies that have told their state just now."""
        now = time.monotonic()
        return [state for told_s, state in self.copies.values() if now - told_s < _STATE_FRESH_S]


class ServeBackend:
    """GatewayBackend over Serve handles and the token link."""

    def __init__(self) -> None:
        self._receiver = TokenReceiver(get_node_ip_address())
        self._applications: dict[str, _Application] = {}
        self._descriptions: list[ModelDescription] = []
        self._by_model: dict[str, _Application] = {}
        self._streams: dict[int, TokenStream] = {}
        self._next_stream = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._forever: list[asyncio.Task[None]] = []
        self._is_discovered = False
        self._nodes_counted_s = -_NODES_INTERVAL_S

    def start(self) -> None:
        """Begin to receive tokens and to look for models."""
        self._forever = [asyncio.create_task(work) for work in (self._receive(), self._discover_forever())]

    async def find_running_models(self) -> None:
        """Return when every running model has described itself."""
        await self.discover()
        running = [application for application in self._applications.values() if application.status == "RUNNING"]
        await asyncio.gather(*(one.registering for one in running if one.registering is not None))

    def check(self) -> None:
        """Raises InternalError when this backend has stopped to receive or to look."""
        if any(task.done() for task in self._forever):
            raise InternalError("a task of the Gateway has ended; see the log")

    def models(self) -> list[ModelDescription]:
        """All models that have described themselves."""
        return self._descriptions

    def open(self, model: str, request: GenerateRequest) -> GenerationStream:
        """Start a request: one unary call to a Router, held open until the request ends."""
        application = self._by_model.get(model)
        if application is None:
            raise ModelNotFoundError(f"model={model} is served no more", field="model")
        number = self._next_stream
        self._next_stream += 1
        response = application.handle.generate.remote(request, self._receiver.address, number)
        stream = TokenStream(request.num_choices, response.cancel)
        self._streams[number] = stream
        self._keep(asyncio.create_task(self._follow(response, number, stream)))
        if request.queue_timeout_s is not None:
            self._watch_for_a_copy(application, stream, request.queue_timeout_s)
        return stream

    def _watch_for_a_copy(self, application: _Application, stream: TokenStream, delay_s: float) -> None:
        """Serve lets a call wait for ever while no replica runs; end it when its time is up and no copy lives."""

        def check() -> None:
            if stream.has_begun or stream.is_over:
                return
            if application.fresh_copies():
                self._watch_for_a_copy(application, stream, _STATE_FRESH_S)
                return
            stream.abandon(
                UnavailableError(
                    f"no copy of the model is running (application {application.status}); try again",
                    retry_after_s=5.0,
                )
            )

        asyncio.get_running_loop().call_later(delay_s, check)

    def health(self) -> HealthReport:
        """Healthy when every application of a model has a copy that says that it is ready."""
        if not self._is_discovered:
            return HealthReport(False, {}, "the models are still being looked for", is_discovering=True)
        models: dict[str, list[CopyState]] = {}
        ill = []
        for name, application in self._applications.items():
            fresh = application.fresh_copies()
            label = application.description.name if application.description else name
            if label in models:
                ill.append(f"{name}: its model name {label} is taken by another application; rename one")
                continue
            models[label] = fresh
            if not any(state.state == "ready" for state in fresh):
                ill.append(f"{label}: {_why_ill(application, fresh)}")
        if not models:
            return HealthReport(False, {}, "no model is deployed")
        is_discovering = any(application.description is None for application in self._applications.values())
        return HealthReport(not ill, models, "; ".join(ill), is_discovering)

    async def _follow(self, response: Any, number: int, stream: TokenStream) -> None:
        """Wait for the end of a request's call and tell its stream."""
        try:
            stream.complete(await response)
        except Exception as error:  # whatever the other process or Serve came to
            stream.fail(_error_of(error))
        except asyncio.CancelledError:
            stream.fail(UnavailableError("the request was cancelled"))
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            asyncio.get_running_loop().call_later(_STATE_FRESH_S * 2, self._streams.pop, number, None)

    async def _receive(self) -> None:
        while True:
            message = await self._receiver.receive()
            try:
                self._take(message)
            except Exception:  # what one Router sends must not make this Gateway deaf to the others
                logger.exception("message of a Router not understood")

    def _take(self, message: ToGateway) -> None:
        if isinstance(message, TokenBatch):
            for number, chunk in unpack_batch(message):
                stream = self._streams.get(number)
                if stream is not None:
                    stream.feed(chunk)
            return
        application = self._applications.get(message.application)
        if application is not None:
            application.copies[message.state.replica_id] = (time.monotonic(), message.state)

    async def _discover_forever(self) -> None:
        while True:
            try:
                await self.discover()
            except Exception:  # Serve's controller may be restarting: look again
                logger.warning("looking for models failed", exc_info=True)
            is_settled = all(one.description is not None for one in self._applications.values())
            await asyncio.sleep(_SETTLED_INTERVAL_S if is_settled else _DISCOVERY_INTERVAL_S)

    async def discover(self) -> None:
        """Compare what Serve runs with what is known; register with Routers that are new or due."""
        status = await asyncio.to_thread(serve.status)
        if time.monotonic() - self._nodes_counted_s > _NODES_INTERVAL_S:
            self._nodes_counted_s = time.monotonic()
            if len(await asyncio.to_thread(ray.nodes)) > 1:
                self._receiver.listen_wide()
        found = {
            name: app
            for name, app in status.applications.items()
            if ROUTER_NAME in app.deployments and app.status.value != "DELETING"
        }
        for name in self._applications.keys() - found.keys():
            del self._applications[name]
        for name, app in found.items():
            known = self._applications.get(name)
            if known is None:
                handle = serve.get_deployment_handle(ROUTER_NAME, name)
                known = self._applications[name] = _Application(handle, app.status.value, app.message)
            known.status, known.message = app.status.value, app.message
        self._is_discovered = True
        for name, application in self._applications.items():
            self._register_if_due(name, application)
        self._index()

    def _register_if_due(self, name: str, application: _Application) -> None:
        """One task for each application: none waits for another's Router."""
        interval = _REGISTER_INTERVAL_S if application.description else _DISCOVERY_INTERVAL_S
        is_under_way = application.registering is not None and not application.registering.done()
        if is_under_way or time.monotonic() - application.registered_s < interval:
            return
        application.registering = asyncio.create_task(self._register(name, application))

    async def _register(self, name: str, application: _Application) -> None:
        try:
            async with asyncio.timeout(_SERVE_TIMEOUT_S):
                described = await application.handle.broadcast("register", self._receiver.address).results_async(
                    return_exceptions=True
                )
            descriptions = [one for one in described if isinstance(one, ModelDescription)]
            if descriptions:
                oldest = min(descriptions, key=lambda one: one.created_s)
                if application.description is None or application.description.created_s != oldest.created_s:
                    application.description = await asyncio.to_thread(_on_this_node, oldest)
                self._index()
        except (RayError, RayServeException, DeploymentUnavailableError, TimeoutError):
            logger.debug("no Router answered application=%s", name)
        except Exception:  # its files cannot be had here: the others are served all the same
            logger.exception("model not usable application=%s", name)
        finally:
            application.registered_s = time.monotonic()

    def _index(self) -> None:
        """Tables by model name; of two applications with one name the first stays."""
        by_model: dict[str, _Application] = {}
        now = time.monotonic()
        for application in self._applications.values():
            for replica_id, (told_s, _state) in list(application.copies.items()):
                if now - told_s > 10 * _STATE_FRESH_S:
                    del application.copies[replica_id]
            if application.description is not None:
                by_model.setdefault(application.description.name, application)
        self._by_model = by_model
        self._descriptions = [one.description for one in by_model.values() if one.description is not None]

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Gateway:
    """HTTP in front of all models. One application, one route."""

    async def __init__(self, config: GatewayConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        configure_logging()
        self._config = config
        logger.info("gateway starting settings=%s", config.model_dump_json())
        self._backend = ServeBackend()
        with contextlib.suppress(TimeoutError):  # ready when the models that run are known
            async with asyncio.timeout(_FIRST_LOOK_S):
                await self._backend.find_running_models()
        self._backend.start()

    async def check_health(self) -> None:
        """Serve replaces this replica when it cannot hear its Routers any more."""
        self._backend.check()

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_http_app(self._backend, self._config)


def _on_this_node(description: ModelDescription) -> ModelDescription:
    """The description with a source_dir that this node has: tokenizer and chat template are read from it."""
    assert description.source is not None
    directory = local_directory(description.source, read_environment(), needs_weights=False)
    return replace(description, source_dir=str(directory))


def _why_ill(application: _Application, fresh: list[CopyState]) -> str:
    details = [f"{state.state} ({state.detail})" for state in fresh]
    if details:
        return ", ".join(details)
    return f"no copy answers; application is {application.status} {application.message[:500]}".strip()


def _error_of(error: Exception) -> RayshardError:
    """A RayshardError for whatever ended a call."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RayshardError):
        return cause
    if isinstance(cause, BackPressureError):
        return QueueFullError("too many requests are waiting for this model; try again later", retry_after_s=1.0)
    if isinstance(cause, DeploymentUnavailableError):
        return UnavailableError("the model is not available; see /health", retry_after_s=5.0)
    if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
        return UnavailableError("the copy of the model that ran the request has died; try again", retry_after_s=1.0)
    logger.error("call of a Router failed", exc_info=error)
    return InternalError(f"the request failed: {type(cause).__name__}")
