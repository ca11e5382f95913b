"""The gRPC methods of a Gateway replica, by the names that Serve's proxy looks for: the last part of their paths."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any, Protocol, TypeVar

import grpc

from serve_app.errors import RayshardError, RequestError, TimeoutExceededError
from serve_app.gateway.http_errors import as_rayshard_error
from serve_app.gateway.open_inference import OpenInference
from serve_app.gateway.open_inference_grpc import infer, model_metadata, server_metadata, stream_infer
from serve_app.protos import open_inference_pb2 as pb

TIMEOUT_KEY = "x-request-timeout-ms"  # a call's deadline is not shown to replicas; clients of ours send this too
_MAX_TIMEOUT_MS = 10**9
ResultT = TypeVar("ResultT")


class CallContext(Protocol):
    """What is used of Serve's gRPC context."""

    def invocation_metadata(self) -> list[tuple[str, str]]: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None: ...


class GrpcMethods:
    """The methods; the Gateway deployment inherits them."""

    _open_inference: OpenInference
    _time_limit_s: float | None = None  # of the Gateway's settings

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

        return await self._answered(look(), pb.ModelReadyResponse(), grpc_context)

    async def ServerMetadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """What is served here."""
        return server_metadata()

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, grpc_context: CallContext
    ) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""

        async def look() -> pb.ModelMetadataResponse:
            return model_metadata(self._open_inference, request)

        return await self._answered(look(), pb.ModelMetadataResponse(), grpc_context)

    async def ModelInfer(self, request: pb.ModelInferRequest, grpc_context: CallContext) -> pb.ModelInferResponse:
        """One whole answer."""
        return await self._answered(infer(self._open_inference, request), pb.ModelInferResponse(), grpc_context)

    async def ModelStreamInfer(
        self, request_stream: AsyncIterator[pb.ModelInferRequest]
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """The answers of any number of calls, as they come."""
        answers = stream_infer(self._open_inference, request_stream)
        try:
            async for answer in answers:
                yield answer
        finally:
            await answers.aclose()  # type: ignore[attr-defined]  # it is a generator

    async def _answered(self, work: Awaitable[ResultT], empty: ResultT, context: CallContext) -> ResultT:
        """What the work comes to, in time. A failure becomes the call's status; raised, Serve would log it."""
        try:
            limit_s = time_limit_of(context.invocation_metadata(), self._time_limit_s)
            async with asyncio.timeout(limit_s) as limit:
                return await work
        except TimeoutError as error:
            timeout = TimeoutExceededError(f"the request took longer than {limit_s or 0:g} s; ask for less")
            set_status(context, timeout if limit.expired() else as_rayshard_error(error))
        except Exception as error:  # here it meets the client
            set_status(context, as_rayshard_error(error))
        return empty


def set_status(context: CallContext, error: RayshardError) -> None:
    """The call's status, with the message that HTTP would give."""
    context.set_code(getattr(grpc.StatusCode, error.grpc_code))
    context.set_details(error.message)
    if error.is_retryable:
        delay_ms = int(1000 * (error.retry_after_s or 1.0))
        context.set_trailing_metadata([("grpc-retry-pushback-ms", str(delay_ms))])


def time_limit_of(metadata: Iterable[tuple[str, Any]], limit_s: float | None) -> float | None:
    """Seconds that a call may take: as its client says, and no more than the Gateway's. Raises RequestError."""
    given = dict(metadata).get(TIMEOUT_KEY)
    if given is None:
        return limit_s
    is_number = isinstance(given, str) and given.isascii() and given.isdecimal()
    if not is_number or not 0 < int(given[:12]) < _MAX_TIMEOUT_MS:
        message = f"{TIMEOUT_KEY} is no number of milliseconds; send a whole number above 0"
        raise RequestError(message, field=TIMEOUT_KEY)
    asked_s = int(given) / 1000
    return asked_s if limit_s is None else min(asked_s, limit_s)
