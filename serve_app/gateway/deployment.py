"""The Gateway deployment: finds the models through Serve, and carries requests to their Routers."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address
from starlette.applications import Starlette

from serve_app.config import GatewayConfig, read_environment
from serve_app.errors import InternalError, QueueFullError, RayshardError, UnavailableError
from serve_app.gateway.backend import GenerationStream, HealthReport
from serve_app.gateway.http import build_http_app
from serve_app.gateway.token_streams import TokenStream
from serve_app.observability import configure_logging
from serve_app.planning.source import local_directory
from serve_app.types import CopyState, GenerateRequest, ModelDescription
from serve_app.wire.links import TokenReceiver
from serve_app.wire.messages import TokenBatch, unpack_batch

logger = logging.getLogger(__name__)

ROUTER_NAME = "Router"

_DISCOVERY_INTERVAL_S = 1.0
_REGISTER_INTERVAL_S = 5.0
_STATE_FRESH_S = 3.0  # a copy that has said nothing for so long counts as gone
_SERVE_TIMEOUT_S = 20.0


@dataclass(slots=True)
class _Application:
    """A model's application as Serve shows it, and what its Routers have told."""

    handle: DeploymentHandle
    status: str
    message: str
    description: ModelDescription | None = None
    registered_s: float = 0.0
    copies: dict[str, tuple[float, CopyState]] = field(default_factory=dict)  # by replica: when it was told


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
        self._is_discovered = False

    def start(self) -> None:
        """Begin to receive tokens and to look for models."""
        for work in (self._receive(), self._discover_forever()):
            self._keep(asyncio.create_task(work))

    def models(self) -> list[ModelDescription]:
        """All models that have described themselves."""
        return self._descriptions

    def open(self, model: str, request: GenerateRequest) -> GenerationStream:
        """Start a request: one unary call to a Router, held open until the request ends."""
        application = self._by_model[model]
        number = self._next_stream
        self._next_stream += 1
        response = application.handle.generate.remote(request, self._receiver.address, number)
        stream = TokenStream(request.num_choices, response.cancel)
        self._streams[number] = stream
        self._keep(asyncio.create_task(self._follow(response, number, stream)))
        return stream

    def health(self) -> HealthReport:
        """Healthy when every application of a model has a copy that says that it is ready."""
        now = time.monotonic()
        models: dict[str, list[CopyState]] = {}
        ill = []
        for name, application in self._applications.items():
            fresh = [state for told_s, state in application.copies.values() if now - told_s < _STATE_FRESH_S]
            label = application.description.name if application.description else name
            models[label] = fresh
            if not any(state.state == "ready" for state in fresh):
                ill.append(f"{label}: {_why_ill(application, fresh)}")
        if not self._is_discovered:
            return HealthReport(False, {}, "the models are still being looked for")
        if not models:
            return HealthReport(False, {}, "no model is deployed")
        return HealthReport(not ill, models, "; ".join(ill))

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
            if isinstance(message, TokenBatch):
                for number, chunk in unpack_batch(message):
                    stream = self._streams.get(number)
                    if stream is not None:
                        stream.feed(chunk)
            else:
                application = self._by_model.get(message.model)
                if application is not None:
                    application.copies[message.state.replica_id] = (time.monotonic(), message.state)

    async def _discover_forever(self) -> None:
        while True:
            try:
                await self._discover()
            except Exception:  # Serve's controller may be restarting: look again
                logger.warning("looking for models failed", exc_info=True)
            await asyncio.sleep(_DISCOVERY_INTERVAL_S)

    async def _discover(self) -> None:
        """Compare what Serve runs with what is known; register with Routers that are new or due."""
        status = await asyncio.to_thread(serve.status)
        if len(await asyncio.to_thread(ray.nodes)) > 1:
            self._receiver.listen_wide()
        found = {name: app for name, app in status.applications.items() if ROUTER_NAME in app.deployments}
        for name in self._applications.keys() - found.keys():
            del self._applications[name]
        for name, app in found.items():
            known = self._applications.get(name)
            if known is None:
                handle = serve.get_deployment_handle(ROUTER_NAME, name)
                known = self._applications[name] = _Application(handle, app.status.value, app.message)
            known.status, known.message = app.status.value, app.message
        self._is_discovered = True
        await asyncio.gather(*(self._register(application) for application in self._applications.values()))
        self._index()

    async def _register(self, application: _Application) -> None:
        now = time.monotonic()
        interval = _REGISTER_INTERVAL_S if application.description else _DISCOVERY_INTERVAL_S
        if application.status not in ("RUNNING", "UNHEALTHY", "DEPLOYING") or now - application.registered_s < interval:
            return
        with contextlib.suppress(RayError, RayServeException, DeploymentUnavailableError, TimeoutError):
            async with asyncio.timeout(_SERVE_TIMEOUT_S):
                described = await application.handle.broadcast("register", self._receiver.address).results_async(
                    return_exceptions=True
                )
            descriptions = [one for one in described if isinstance(one, ModelDescription)]
            if descriptions:
                oldest = min(descriptions, key=lambda one: one.created_s)
                application.description = await asyncio.to_thread(_on_this_node, oldest)
                application.registered_s = now

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
        self._backend = ServeBackend()
        self._backend.start()

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_http_app(self._backend, self._config)


def _on_this_node(description: ModelDescription) -> ModelDescription:
    """The description with a source_dir that this node has: tokenizer and chat template are read from it."""
    assert description.source is not None
    return replace(description, source_dir=str(local_directory(description.source, read_environment())))


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
    if isinstance(cause, RayActorError | DeploymentUnavailableError):
        return UnavailableError("the copy of the model that ran the request has died; try again", retry_after_s=1.0)
    logger.error("call of a Router failed", exc_info=error)
    return InternalError(f"the request failed: {type(cause).__name__}")
