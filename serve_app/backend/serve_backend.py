"""ModelBackend over the links beside Serve. Nothing of Ray: what asks Serve is handed in."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from serve_app.backend.application import GRAPH_NAME, PREPROCESSOR_NAME, ROUTER_NAME, Application
from serve_app.backend.applications import Applications
from serve_app.backend.call_spans import generating, part_of
from serve_app.backend.control import Control
from serve_app.backend.failover import generate_on
from serve_app.backend.open_calls import OpenCalls
from serve_app.backend.prompt_marks import RoutedPrompt
from serve_app.backend.protocol import HealthReport, TakeChunk
from serve_app.backend.replica_calls import MakeCall, ReplicaCalls
from serve_app.backend.time_left import TimeLeft
from serve_app.backend.token_stream import TokenStream
from serve_app.config.failover import FailoverConfig
from serve_app.errors import InternalError, ModelNotFoundError, UnavailableError
from serve_app.tracing.tracing import Tracing
from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import GenerateRequest
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription
from serve_app.types.plans import CopyAccount
from serve_app.types.tensors import InferRequest, InferResult
from serve_app.wire.links import Senders, TokenReceiver
from serve_app.wire.messages import (
    PROTOCOL_VERSION,
    AccountMessage,
    AccountReply,
    Call,
    ChainMessage,
    ChainReply,
    GraphMessage,
    GraphReply,
    InferMessage,
    InferReply,
    StateMessage,
    ToGateway,
    TokenBatch,
)

logger = logging.getLogger(__name__)
ReplyT = TypeVar("ReplyT")

_SWEEP_INTERVAL_S = 0.5
_NODES_INTERVAL_S = 10.0
_HOLD_S = 10.0  # how long one Serve call stands for a call that Serve does not see
_MAX_HOLDS = 1000
_CHAIN_WAIT_S = 60.0  # for a Preprocessor
_ACCOUNT_WAIT_S = 10.0  # for what a copy tells of itself: it plans when it is asked first
_CHUNK_ITEMS = 32  # of a long request: what one replica is given at a time
_CHUNKS_PER_COPY = 2


class ServeBackend:
    """The models of a Serve cluster, each an application of its own; graphs of them count where asked for."""

    def __init__(
        self,
        control: Control,
        place: Callable[[ModelDescription], ModelDescription] = lambda model: model,
        *,
        has_graphs: bool = True,
        failover: FailoverConfig | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._control = control
        self._failover = failover or FailoverConfig()
        self._tracing = tracing
        self._receiver = TokenReceiver(control.node)
        self._senders = Senders(control.node)
        self._open_calls = OpenCalls()
        mains = frozenset({ROUTER_NAME, GRAPH_NAME} if has_graphs else {ROUTER_NAME})
        self._applications = Applications(control, self._own_address, self._make_calls, place, mains)
        self._holds: dict[tuple[str, str], set[asyncio.Task[None]]] = {}  # by application and deployment
        self._tasks: list[asyncio.Task[None]] = []

    async def find_running_models(self) -> None:
        """Begin to receive; return when every running model has described itself and a copy has told how it is."""
        await self._listen_to_other_nodes()
        self._tasks += [
            asyncio.create_task(work) for work in (self._receiver.deliver(self._take), self._sweep_forever())
        ]
        await self._applications.find_running_models()

    def start(self) -> None:
        """Begin to look for models again and again."""
        self._tasks += [
            asyncio.create_task(work) for work in (self._applications.discover_forever(), self._count_nodes_forever())
        ]

    def check(self) -> None:
        """Raises InternalError when this backend has stopped receiving or looking."""
        if any(task.done() for task in self._tasks):
            raise InternalError("a task of the backend has ended; see the log")

    def close(self) -> None:
        """End all tasks and close the links."""
        for task in [*self._tasks, *(hold for holds in self._holds.values() for hold in holds)]:
            task.cancel()
        self._receiver.close()
        self._senders.close()

    def models(self) -> list[ModelDescription]:
        """See ModelBackend."""
        return list(self._applications.descriptions.values())

    def model(self, name: str) -> ModelDescription | None:
        """See ModelBackend."""
        return self._applications.descriptions.get(name)

    async def wait_for_model(self, name: str, limit_s: float) -> None:
        """See ModelBackend."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._applications.wait_for(name)

    def health(self) -> HealthReport:
        """See ModelBackend."""
        return replace(self._applications.health(), num_call_bytes=self._senders.num_sent_bytes)

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """See ModelBackend."""
        stream, calls = TokenStream(request.num_choices, take), self._calls(model, ROUTER_NAME)
        description = self.model(model)
        prompt = None if description is None else _routed_prompt(description, request)
        if self._tracing is None:
            await generate_on(calls, request, stream, self._failover, prompt)
            return
        with generating(self._tracing, model, request, stream) as call:
            call.completion = await generate_on(calls, call.request, stream, self._failover, prompt)

    async def infer(self, request: InferRequest) -> InferResult:
        """See ModelBackend. Many entries are run in pieces on all copies."""
        with part_of(self._tracing, "infer", request.model, request) as request:
            return await self._infer(request)

    async def _infer(self, request: InferRequest) -> InferResult:
        calls, left = self._calls(request.model, ROUTER_NAME), TimeLeft(request.time_left_s)
        if len(request.items) <= _CHUNK_ITEMS:
            return await self._infer_once(calls, request, left)
        limit = asyncio.Semaphore(_CHUNKS_PER_COPY * max(1, calls.num_ready))
        pieces = [
            replace(request, items=request.items[start : start + _CHUNK_ITEMS])
            for start in range(0, len(request.items), _CHUNK_ITEMS)
        ]

        async def run(piece: InferRequest) -> InferResult:
            async with limit:
                return await self._infer_once(calls, piece, left)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(piece)) for piece in pieces]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return InferResult([output for task in tasks for output in task.result().outputs])

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """See ModelBackend."""
        calls = self._calls(request.model, PREPROCESSOR_NAME)
        with part_of(self._tracing, "preprocess", request.model, request) as request:
            return _expected(ChainReply, await calls.call(_maker(ChainMessage, request), _CHAIN_WAIT_S)).result

    async def run_graph(self, request: GraphRequest) -> GraphResult:
        """See ModelBackend."""
        calls, left = self._calls(request.graph, GRAPH_NAME), TimeLeft(request.time_left_s)
        with part_of(self._tracing, "graph", request.graph, request) as request:
            reply = await calls.call(_timed_maker(GraphMessage, request, left), request.queue_timeout_s)
            return _expected(GraphReply, reply).result

    async def accounts(self) -> list[CopyAccount]:
        """See ModelBackend."""
        routers = [one.calls.get(ROUTER_NAME) for one in self._applications.of_models]
        asked = (calls.call_each(_account_message, _ACCOUNT_WAIT_S) for calls in routers if calls is not None)
        replies = [reply for found in await asyncio.gather(*asked) for reply in found]
        return [account for reply in replies for account in _expected(AccountReply, reply).accounts]

    async def _infer_once(self, calls: ReplicaCalls, request: InferRequest, left: TimeLeft) -> InferResult:
        reply = await calls.call(_timed_maker(InferMessage, request, left), request.queue_timeout_s)
        return _expected(InferReply, reply).result

    def _calls(self, model: str, deployment: str) -> ReplicaCalls:
        application = self._applications.by_model.get(model)
        if application is None:
            raise ModelNotFoundError(f"model={model} is not served any more", field="model")
        calls = application.calls.get(deployment)
        if calls is None:
            raise InternalError(f"model={model} has no {deployment}")
        return calls

    def _own_address(self) -> LinkAddress:
        return self._receiver.address

    def _make_calls(self) -> ReplicaCalls:
        return ReplicaCalls(self._senders, self._own_address, self._open_calls)

    def _take(self, message: ToGateway) -> None:
        try:
            if isinstance(message, TokenBatch):
                self._open_calls.take_tokens(message)
            elif isinstance(message, StateMessage):
                self._applications.take_state(message)
            else:
                self._open_calls.take_reply(message)
        except Exception as error:  # what one replica sends must not make this process deaf to the others
            logger.error("message %s not understood error=%s", type(message).__name__, type(error).__name__)

    async def _sweep_forever(self) -> None:
        """Notice replicas that are silent, and let Serve's autoscaling see the calls that are not Serve's."""
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            late_s = time.monotonic() - began_s - _SWEEP_INTERVAL_S
            late_s = late_s if late_s > _SWEEP_INTERVAL_S else 0.0  # this process itself stood still
            self._applications.excuse(late_s)
            self._applications.renew()
            for application in self._applications.all:
                for deployment, calls in application.calls.items():
                    calls.sweep(late_s)
                    self._hold(application, deployment, calls)

    def _hold(self, application: Application, deployment: str, calls: ReplicaCalls) -> None:
        """Keep as many short Serve calls open as there are calls under way; those above run out by themselves."""
        holds = self._holds.setdefault((application.name, deployment), set())
        is_unknown = application.wants_copy and deployment == application.main
        for _ in range(min(max(calls.take_peak(), is_unknown), _MAX_HOLDS) - len(holds)):
            task = asyncio.create_task(self._hold_once(application.name, deployment))
            holds.add(task)
            task.add_done_callback(holds.discard)

    async def _hold_once(self, application: str, deployment: str) -> None:
        try:
            await self._control.hold(application, deployment, _HOLD_S)
        except UnavailableError as error:
            logger.debug("hold ended application=%s reason=%s", application, error.message)

    async def _count_nodes_forever(self) -> None:
        while True:
            await asyncio.sleep(_NODES_INTERVAL_S)
            await self._listen_to_other_nodes()

    async def _listen_to_other_nodes(self) -> None:
        if await self._control.num_nodes() > 1:
            self._receiver.listen_wide()


def _account_message(number: int, reply_to: LinkAddress) -> AccountMessage:
    return AccountMessage(PROTOCOL_VERSION, 0, number, reply_to)


def _routed_prompt(model: ModelDescription, request: GenerateRequest) -> RoutedPrompt | None:
    """What a copy is chosen by; None: the least busy one is taken."""
    if model.routed_block_size is None or request.params.num_prompt_logprobs is not None:  # which are computed whole
        return None
    return RoutedPrompt(request.prompt_token_ids, model.routed_block_size, request.cache_salt, request.session)


def _maker(message: Callable[..., Call], request: object) -> MakeCall:
    """Makes the call's message once its number is known."""
    return lambda number, reply_to: message(PROTOCOL_VERSION, 0, number, reply_to, request)


def _timed_maker(message: Callable[..., Call], request: InferRequest | GraphRequest, left: TimeLeft) -> MakeCall:
    """As _maker, with what is left of the request's time when it is sent."""
    return lambda number, reply_to: message(
        PROTOCOL_VERSION, 0, number, reply_to, replace(request, time_left_s=left.seconds)
    )


def _expected(kind: type[ReplyT], reply: object) -> ReplyT:
    """The reply, which is of the call's kind; InternalError otherwise."""
    if not isinstance(reply, kind):
        raise InternalError(f"a {type(reply).__name__} came where a {kind.__name__} was due")
    return reply
