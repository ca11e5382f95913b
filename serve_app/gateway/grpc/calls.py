"""How a gRPC call runs here: its key, its time, its place among others, and a failure as its status."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from serve_app.errors import RayshardError
from serve_app.gateway.api_keys import ApiKeys
from serve_app.gateway.caller import ADDRESS, CALLER, SESSION
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.open_inference import OpenInference
from serve_app.gateway.failures import as_rayshard_error, told_message
from serve_app.gateway.request_notes import counted
from serve_app.gateway.request_span import RequestSpan
from serve_app.gateway.time_limits import TIMEOUT_KEY, begin_request, time_limit_of, within
from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import rayshard_pb2 as rayshard_pb

ResultT = TypeVar("ResultT")
AnswerT = TypeVar("AnswerT", bound=Message)
_RPCS = {  # service and method of each, as traces name them
    method.name: f"{service.full_name}/{method.name}"
    for module in (pb, rayshard_pb, health_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class CallContext(Protocol):
    """What is used of Serve's gRPC context."""

    def invocation_metadata(self) -> list[tuple[str, str]]: ...

    def peer(self) -> str: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None: ...


class StreamFailedError(Exception):
    """Ends a stream whose status is set. Serve's proxy takes a stream's status along with a message or an exception
    only; it logs the exception, so this one says nothing of the request."""


class GrpcCalls:
    """What all methods share."""

    _plane: DataPlane
    _open_inference: OpenInference
    _time_limit_s: float | None = None  # of the Gateway's settings
    _keys: ApiKeys | None = None  # None: everybody may do everything

    async def _streamed(
        self, method: str, start: Callable[[float | None], AsyncIterator[ResultT]], context: CallContext
    ) -> AsyncIterator[ResultT]:
        """The pieces of an answer; a failure becomes the call's status."""
        failure = None
        try:
            with self._taken(method, context):
                pieces = start(time_limit_of(dict(context.invocation_metadata()), self._time_limit_s))
                try:
                    async for piece in pieces:
                        yield piece
                finally:
                    await pieces.aclose()  # type: ignore[attr-defined]  # it is a generator
        except Exception as error:  # here it meets the client
            failure = as_rayshard_error(error)
        fail_stream(context, failure)

    @contextmanager
    def _taken(self, method: str, context: CallContext, *, is_probe: bool = False) -> Iterator[None]:
        """A call while it runs. Raises UnavailableError while the server drains, and what `_used_key` does."""
        place = nullcontext() if is_probe else self._plane.intake.taken()
        tracing = None if is_probe else self._plane.tracing
        span = None if tracing is None else RequestSpan.of_grpc(tracing, _RPCS[method], context.invocation_metadata())
        with counted(self._plane.metrics, f"grpc {method}", span=span), place, self._used_key(context):
            yield

    def _used_key(self, context: CallContext) -> AbstractContextManager[object]:
        """The API key of a call, while it runs. Raises UnauthenticatedError, RateLimitedError."""
        _note_origin(context)
        if self._keys is None:
            return nullcontext()
        return self._keys.used(authorizations_of(context))

    def _caller_of(self, context: CallContext) -> str:
        """Who a stream is from: by its key, for which this task then acts, or by its host.

        Raises UnauthenticatedError.
        """
        _note_origin(context)
        if self._keys is None:
            return peer_of(context)
        holder = self._keys.holder(authorizations_of(context))
        CALLER.set(holder)
        return f"key {holder.name}"

    async def _answered(
        self, work: Callable[[], Awaitable[AnswerT]], empty: AnswerT, context: CallContext, *, is_probe: bool = False
    ) -> AnswerT:
        """What the work comes to, in time. A failure becomes the call's status; raised, Serve would log it.

        is_probe: it asks for health, which is told while the server drains too.
        """
        try:
            with self._taken(_method_of(empty), context, is_probe=is_probe):
                limit_s = time_limit_of(dict(context.invocation_metadata()), self._time_limit_s)
                return await within(limit_s, work())
        except Exception as error:  # here it meets the client
            set_status(context, as_rayshard_error(error))
        return empty


def _method_of(answer: Message) -> str:
    """ModelInfer of a ModelInferResponse."""
    return str(answer.DESCRIPTOR.name).removesuffix("Response")


def authorizations_of(context: CallContext) -> list[str]:
    """All that a call has sent as `authorization`."""
    return [value for name, value in context.invocation_metadata() if name == "authorization"]


def peer_of(context: CallContext) -> str:
    """The host that a call comes from, without the port, which is another for each connection."""
    return context.peer().rpartition(":")[0]


def _note_origin(context: CallContext) -> None:
    """Where a call comes from, for this task alone: its host; and the conversation and time that its metadata names."""
    ADDRESS.set(_host_of(context))
    SESSION.set(next((value for name, value in context.invocation_metadata() if name == "x-session-id"), ""))
    begin_request(dict(context.invocation_metadata()).get(TIMEOUT_KEY))


def _host_of(context: CallContext) -> str:
    return peer_of(context).partition(":")[2]  # without its kind: HTTP names the same hosts


def fail_stream(context: CallContext, failure: RayshardError | None) -> None:
    """End a stream with a failure's status; called where no exception is being handled, so that none is logged."""
    if failure is not None:
        set_status(context, failure)
        raise StreamFailedError("the call has failed; its status tells the client why")


def set_status(context: CallContext, error: RayshardError) -> None:
    """The call's status, with the message that HTTP would give."""
    context.set_code(getattr(grpc.StatusCode, error.grpc_code))
    context.set_details(told_message(error))
    if error.is_retryable:
        delay_ms = int(1000 * (error.retry_after_s or 1.0))
        context.set_trailing_metadata([("grpc-retry-pushback-ms", str(delay_ms))])
