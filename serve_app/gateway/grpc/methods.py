"""The gRPC methods of a Gateway replica, by the names that Serve's proxy looks for: the last part of their paths."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from serve_app.errors import ModelNotFoundError, RayshardError, UnavailableError
from serve_app.gateway.api_keys import ApiKeys
from serve_app.gateway.caller import ADDRESS, CALLER, SESSION
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.open_inference import OpenInference
from serve_app.gateway.failures import as_rayshard_error, told_message
from serve_app.gateway.grpc.open_inference import (
    infer,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
    stream_infer,
)
from serve_app.gateway.grpc.rayshard import chat, classify, embed, generate, predict
from serve_app.gateway.request_notes import counted
from serve_app.gateway.request_span import RequestSpan
from serve_app.gateway.time_limits import time_limit_of, within
from serve_app.protos import open_inference_pb2 as pb
from serve_app.protos import rayshard_pb2 as rayshard_pb

ResultT = TypeVar("ResultT")
AnswerT = TypeVar("AnswerT", bound=Message)
_SERVICES = ("", "inference.GRPCInferenceService", "rayshard.v1.Rayshard")  # healthy when everything is
_WATCH_S = 0.5
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


class GrpcMethods:
    """The methods; the Gateway deployment inherits them."""

    _plane: DataPlane
    _open_inference: OpenInference
    _time_limit_s: float | None = None  # of the Gateway's settings
    _keys: ApiKeys | None = None  # None: everybody may do everything

    async def ServerLive(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Whether this replica answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Whether every model can answer."""
        return pb.ServerReadyResponse(ready=self._open_inference.is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, grpc_context: CallContext) -> pb.ModelReadyResponse:
        """Whether a copy of a model can answer."""

        async def look() -> pb.ModelReadyResponse:
            return pb.ModelReadyResponse(ready=self._open_inference.is_model_ready(request.name, request.version))

        return await self._answered(look, pb.ModelReadyResponse(), grpc_context, is_probe=True)

    async def ServerMetadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """What is served here."""
        return server_metadata()

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, grpc_context: CallContext
    ) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""

        async def look() -> pb.ModelMetadataResponse:
            return model_metadata(self._open_inference, request)

        return await self._answered(look, pb.ModelMetadataResponse(), grpc_context)

    async def ModelConfig(self, request: pb.ModelConfigRequest, grpc_context: CallContext) -> pb.ModelConfigResponse:
        """A model as Triton's clients know it."""

        async def look() -> pb.ModelConfigResponse:
            return model_config(self._open_inference, request)

        return await self._answered(look, pb.ModelConfigResponse(), grpc_context)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, grpc_context: CallContext
    ) -> pb.ModelStatisticsResponse:
        """How often models were called."""

        async def look() -> pb.ModelStatisticsResponse:
            return model_statistics(self._open_inference, request)

        return await self._answered(look, pb.ModelStatisticsResponse(), grpc_context)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, grpc_context: CallContext
    ) -> pb.RepositoryIndexResponse:
        """The models that there are."""

        async def look() -> pb.RepositoryIndexResponse:
            return repository_index(self._open_inference, request)

        return await self._answered(look, pb.RepositoryIndexResponse(), grpc_context)

    async def ModelInfer(self, request: pb.ModelInferRequest, grpc_context: CallContext) -> pb.ModelInferResponse:
        """One whole answer."""

        async def run() -> pb.ModelInferResponse:
            return await infer(self._open_inference, request)

        return await self._answered(run, pb.ModelInferResponse(), grpc_context)

    async def ModelStreamInfer(
        self, request_stream: AsyncIterator[pb.ModelInferRequest], grpc_context: CallContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """The answers of any number of calls, as they come. Each call uses the API key as if it had come alone."""
        failure = None
        try:
            self._plane.intake.check()
            with self._plane.infer_streams.held(self._caller_of(grpc_context)):
                answers = stream_infer(
                    self._open_inference, request_stream, lambda: self._taken("ModelStreamInfer", grpc_context)
                )
                try:
                    async for answer in answers:
                        yield answer
                finally:
                    await answers.aclose()  # type: ignore[attr-defined]  # it is a generator
        except Exception as error:  # here it meets the client
            failure = as_rayshard_error(error)
        fail_stream(grpc_context, failure)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        """Health as load balancers ask for it (grpc.health.v1): of everything, or of one model by its name."""

        async def look() -> health_pb2.HealthCheckResponse:
            return self._health(request.service)

        if request.service in _SERVICES:
            return await look()
        return await self._answered(look, health_pb2.HealthCheckResponse(), grpc_context, is_probe=True)

    async def List(
        self, _request: health_pb2.HealthListRequest, grpc_context: CallContext
    ) -> health_pb2.HealthListResponse:
        """Health of everything, and of each model that the caller's key may see; without a key of no model."""

        async def look() -> health_pb2.HealthListResponse:
            names = [model.name for model in self._plane.models.all()]
            return health_pb2.HealthListResponse(statuses={name: self._health(name) for name in (*_SERVICES, *names)})

        if self._keys is not None and not authorizations_of(grpc_context):
            return health_pb2.HealthListResponse(statuses={name: self._health(name) for name in _SERVICES})
        return await self._answered(look, health_pb2.HealthListResponse(), grpc_context, is_probe=True)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: CallContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Health now, and whenever it changes; of a name that is not served, until it is."""
        failure, told = None, None
        is_open = request.service in _SERVICES and not authorizations_of(grpc_context)
        try:
            with self._plane.watches.held(_peer_of(grpc_context) if is_open else self._caller_of(grpc_context)):
                while True:
                    if not is_open:
                        self._caller_of(grpc_context)  # its key may have been taken away
                    health = self._watched_health(request.service)
                    if health != told:
                        told = health
                        yield health
                    await asyncio.sleep(_WATCH_S)
        except asyncio.CancelledError:
            return  # the client has left; raised on, Serve would log it with a traceback
        except Exception as error:  # here it meets the client
            failure = as_rayshard_error(error)
        fail_stream(grpc_context, failure)

    def _watched_health(self, service: str) -> health_pb2.HealthCheckResponse:
        try:
            return self._health(service)
        except (ModelNotFoundError, UnavailableError):
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)

    def _health(self, service: str) -> health_pb2.HealthCheckResponse:
        """Raises ModelNotFoundError, and UnavailableError while models are still looked for."""
        is_whole = service in _SERVICES
        is_ready = self._open_inference.is_ready() if is_whole else self._open_inference.is_model_ready(service, "")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if is_ready else status.NOT_SERVING)

    async def Generate(
        self, request: rayshard_pb.GenerateRequest, grpc_context: CallContext
    ) -> AsyncIterator[rayshard_pb.GenerateResponse]:
        """A text's continuation, as it is made."""
        async for piece in self._streamed(
            "Generate", lambda limit_s: generate(self._plane, request, limit_s), grpc_context
        ):
            yield piece

    async def Chat(
        self, request: rayshard_pb.ChatRequest, grpc_context: CallContext
    ) -> AsyncIterator[rayshard_pb.GenerateResponse]:
        """A conversation's answer, as it is made."""
        async for piece in self._streamed("Chat", lambda limit_s: chat(self._plane, request, limit_s), grpc_context):
            yield piece

    async def Embed(self, request: rayshard_pb.EmbedRequest, grpc_context: CallContext) -> rayshard_pb.EmbedResponse:
        """Vectors of texts."""
        return await self._answered(lambda: embed(self._plane, request), rayshard_pb.EmbedResponse(), grpc_context)

    async def Classify(
        self, request: rayshard_pb.ClassifyRequest, grpc_context: CallContext
    ) -> rayshard_pb.ClassifyResponse:
        """Labels of texts."""
        empty = rayshard_pb.ClassifyResponse()
        return await self._answered(lambda: classify(self._plane, request), empty, grpc_context)

    async def Predict(
        self, request: rayshard_pb.PredictRequest, grpc_context: CallContext
    ) -> rayshard_pb.PredictResponse:
        """What a module makes of named tensors."""
        empty = rayshard_pb.PredictResponse()
        return await self._answered(lambda: predict(self._plane, request), empty, grpc_context)

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
            return _peer_of(context)
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


def _peer_of(context: CallContext) -> str:
    return context.peer().rpartition(":")[0]  # without the port, which is another for each connection


def _note_origin(context: CallContext) -> None:
    """Where a call comes from, for this task alone: its host, and the conversation that its metadata names."""
    ADDRESS.set(_host_of(context))
    SESSION.set(next((value for name, value in context.invocation_metadata() if name == "x-session-id"), ""))


def _host_of(context: CallContext) -> str:
    return _peer_of(context).partition(":")[2]  # without its kind: HTTP names the same hosts


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
