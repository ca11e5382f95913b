"""GatewayBackend over Serve handles and the links beside them."""

import asyncio
import itertools
import logging
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.util import get_node_ip_address

from serve_app.backend.protocol import GenerationStream, HealthReport
from serve_app.backend.replica_calls import FRESH_S, ReplicaCalls, reply_error
from serve_app.backend.serve_applications import (
    GRAPH_NAME,
    PREPROCESSOR_NAME,
    ROUTER_NAME,
    ServeApplications,
    ServedApplication,
)
from serve_app.backend.token_streams import TokenStream
from serve_app.errors import InternalError, ModelNotFoundError, QueueFullError, RayshardError, UnavailableError
from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import GenerateRequest
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, InferResult
from serve_app.wire.links import Senders, TokenReceiver
from serve_app.wire.messages import (
    PROTOCOL_VERSION,
    Call,
    ChainMessage,
    ChainReply,
    InferMessage,
    InferReply,
    StateMessage,
    ToGateway,
    TokenBatch,
    unpack_batch,
)

logger = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 0.5
_HOLD_S = 10.0  # how long one call stands for a request that Serve does not see
_MAX_HOLDS = 1000
_CHUNK_ITEMS = 32  # of a long request: what one replica is given at a time
_CHUNKS_PER_COPY = 2


class ServeBackend:
    """The models behind a Gateway, each an application of Serve."""

    def __init__(self) -> None:
        node = str(get_node_ip_address())
        self._receiver = TokenReceiver(node)
        self._senders = Senders(node)
        self._call_numbers = itertools.count()
        self._applications = ServeApplications(self._receiver, self._make_calls)
        self._streams: dict[int, TokenStream] = {}
        self._next_stream = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._forever: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look for models."""
        self._forever += [asyncio.create_task(self._applications.discover_forever())]

    async def find_running_models(self) -> None:
        """Begin to receive; return when every running model has described itself."""
        self._forever += [asyncio.create_task(work) for work in (self._receive(), self._sweep_forever())]
        await self._applications.find_running_models()

    def check(self) -> None:
        """Raises InternalError when this backend has stopped to receive or to look."""
        if any(task.done() for task in self._forever):
            raise InternalError("a task of the Gateway has ended; see the log")

    def models(self) -> list[ModelDescription]:
        """All models that have described themselves."""
        return self._applications.descriptions

    def health(self) -> HealthReport:
        """Healthy when every application of a model has a copy that says that it is ready."""
        return self._applications.health()

    def open(self, model: str, request: GenerateRequest) -> GenerationStream:
        """Start a request: one unary call to a Router, held open until the request ends."""
        application = self._application(model)
        number = self._next_stream
        self._next_stream += 1
        response = application.handle.generate.remote(request, self._receiver.address, number)
        stream = TokenStream(request.num_choices, response.cancel)
        self._streams[number] = stream
        self._keep(asyncio.create_task(self._follow(response, number, stream)))
        if request.queue_timeout_s is not None:
            self._watch_for_a_copy(application, stream, request.queue_timeout_s)
        return stream

    async def infer(self, request: InferRequest) -> InferResult:
        """Run entries, many of them in pieces on all copies."""
        calls = self._calls(request.model, ROUTER_NAME)
        if len(request.items) <= _CHUNK_ITEMS:
            return await self._infer_once(calls, request)
        limit = asyncio.Semaphore(_CHUNKS_PER_COPY * max(1, calls.num_ready))
        pieces = [
            replace(request, items=request.items[start : start + _CHUNK_ITEMS])
            for start in range(0, len(request.items), _CHUNK_ITEMS)
        ]

        async def run(piece: InferRequest) -> InferResult:
            async with limit:
                return await self._infer_once(calls, piece)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(piece)) for piece in pieces]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return InferResult([output for task in tasks for output in task.result().outputs])

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """One call to a Preprocessor of the model's application."""

        def make(number: int, reply_to: LinkAddress) -> Call:
            return ChainMessage(PROTOCOL_VERSION, 0, number, reply_to, request)

        reply = await self._calls(request.model, PREPROCESSOR_NAME).call(make, None)
        if not isinstance(reply, ChainReply):
            raise reply_error(reply)
        return reply.result

    async def run_graph(self, request: GraphRequest) -> GraphResult:
        """One Serve call: a graph's own calls cost more than that, and Serve scales it by them."""
        application = self._application(request.graph)
        if application.main != GRAPH_NAME:
            raise InternalError(f"model={request.graph} is not a graph")
        response = application.handle.run.remote(request)
        try:
            result: GraphResult = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise error_of(error) from None
        return result

    async def _infer_once(self, calls: ReplicaCalls, request: InferRequest) -> InferResult:
        def make(number: int, reply_to: LinkAddress) -> Call:
            return InferMessage(PROTOCOL_VERSION, 0, number, reply_to, request)

        reply = await calls.call(make, request.queue_timeout_s)
        if not isinstance(reply, InferReply):
            raise reply_error(reply)
        return reply.result

    def _application(self, model: str) -> ServedApplication:
        application = self._applications.by_model.get(model)
        if application is None:
            raise ModelNotFoundError(f"model={model} is served no more", field="model")
        return application

    def _calls(self, model: str, deployment: str) -> ReplicaCalls:
        calls = self._application(model).calls.get(deployment)
        if calls is None:
            raise InternalError(f"model={model} has no {deployment}")
        return calls

    def _make_calls(self) -> ReplicaCalls:
        return ReplicaCalls(self._senders, lambda: self._receiver.address, lambda: next(self._call_numbers))

    def _watch_for_a_copy(self, application: ServedApplication, stream: TokenStream, delay_s: float) -> None:
        """Serve lets a call wait for ever while no replica runs; end it when its time is up and no copy lives."""

        def check() -> None:
            if stream.has_begun or stream.is_over:
                return
            if application.fresh_copies():
                self._watch_for_a_copy(application, stream, FRESH_S)
                return
            stream.abandon(
                UnavailableError(
                    f"no copy of the model is running (application {application.status}); try again",
                    retry_after_s=5.0,
                )
            )

        asyncio.get_running_loop().call_later(delay_s, check)

    async def _follow(self, response: Any, number: int, stream: TokenStream) -> None:
        """Wait for the end of a request's call and tell its stream."""
        try:
            stream.complete(await response)
        except Exception as error:  # whatever the other process or Serve came to
            stream.fail(error_of(error))
        except asyncio.CancelledError:
            stream.fail(UnavailableError("the request was cancelled"))
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            asyncio.get_running_loop().call_later(FRESH_S * 2, self._streams.pop, number, None)

    async def _receive(self) -> None:
        while True:
            message = await self._receiver.receive()
            try:
                self._take(message)
            except Exception as error:  # what one replica sends must not make this Gateway deaf to the others
                logger.error("message %s not understood error=%s", type(message).__name__, type(error).__name__)

    def _take(self, message: ToGateway) -> None:
        if isinstance(message, TokenBatch):
            for number, chunk in unpack_batch(message):
                stream = self._streams.get(number)
                if stream is not None:
                    stream.feed(chunk)
        elif isinstance(message, StateMessage):
            self._applications.take_state(message)
        else:
            for application in self._applications.all:
                if any(calls.take_reply(message) for calls in application.calls.values()):
                    return

    async def _sweep_forever(self) -> None:
        """Notice replicas that are silent, and let Serve's autoscaling see the calls that are not Serve's."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            for application in self._applications.all:
                for deployment, calls in application.calls.items():
                    calls.sweep()
                    self._hold(application, deployment, calls)

    def _hold(self, application: ServedApplication, deployment: str, calls: ReplicaCalls) -> None:
        """Keep as many short Serve calls open as there are calls under way; those above run out by themselves."""
        for _ in range(min(calls.take_peak(), _MAX_HOLDS) - len(calls.holds)):
            task = asyncio.create_task(_hold_once(application.handles[deployment]))
            calls.holds.add(task)
            task.add_done_callback(calls.holds.discard)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _hold_once(handle: Any) -> None:
    try:
        await handle.hold.remote(_HOLD_S)
    except (RayError, RayServeException) as error:
        logger.debug("hold ended error=%s", type(error).__name__)


def error_of(error: Exception) -> RayshardError:
    """A RayshardError for whatever ended a Serve call."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RayshardError):
        return cause
    if isinstance(cause, BackPressureError):
        return QueueFullError("too many requests are waiting for this model; try again later", retry_after_s=1.0)
    if isinstance(cause, DeploymentUnavailableError):
        return UnavailableError("the model is not available; see /health", retry_after_s=5.0)
    if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
        return UnavailableError("the copy of the model that ran the request has died; try again", retry_after_s=1.0)
    logger.error("call of a Router failed error=%s", type(cause).__name__)
    return InternalError(f"the request failed: {type(cause).__name__}")
