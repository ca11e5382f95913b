"""What `grpc_servicer_functions` of a Serve file names: they add our services to the server of Serve's proxy.

They run in the proxy. A stream there whose client leaves while a message is being written is only dropped by Ray Serve
2.60: nobody cancels the call behind it, and the model generates to the end for no one. Here such a stream is cancelled
as one is whose client leaves while the proxy waits for the next message.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from serve_app.protos.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from serve_app.protos.rayshard_pb2_grpc import add_RayshardServicer_to_server

StreamHandler = Callable[[Any, Any], AsyncGenerator[bytes, None]]


def add_rayshard(servicer: Any, server: Any) -> None:
    """rayshard.v1.Rayshard, whose streams end with their clients."""
    _cancel_left_streams(server)
    add_RayshardServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # generated


def add_open_inference(servicer: Any, server: Any) -> None:
    """inference.GRPCInferenceService, whose streams end with their clients."""
    _cancel_left_streams(server)
    add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # generated


def add_health(servicer: Any, server: Any) -> None:
    """grpc.health.v1.Health, whose streams end with their clients."""
    _cancel_left_streams(server)
    add_HealthServicer_to_server(servicer, server)


def cancelled_when_left(handler: StreamHandler) -> StreamHandler:
    """The same stream of messages; closed between two of them, it cancels the handler in its wait for the next."""

    async def stream(request: Any, context: Any) -> AsyncGenerator[bytes, None]:
        messages = handler(request, _KnownPeer(context))
        try:
            async for message in messages:
                yield message
        except GeneratorExit:
            await _cancel(messages)
            raise

    return stream


def _cancel_left_streams(server: Any) -> None:
    """Have Serve's server make all its streams so from now on; twice is once."""
    make = server.service_handler_factory
    if getattr(make, "cancels_left_streams", False):
        return

    def make_handler(service_method: str, streaming_type: Any) -> Callable[..., Any]:
        handler: Callable[..., Any] = make(service_method=service_method, streaming_type=streaming_type)
        is_stream = str(streaming_type.value).endswith("_stream")
        return cancelled_when_left(handler) if is_stream else handler

    make_handler.cancels_left_streams = True  # type: ignore[attr-defined]
    server.service_handler_factory = make_handler


async def _cancel(messages: AsyncGenerator[bytes, None]) -> None:
    has_ended = False
    while not has_ended:  # a message that was there already comes first
        waiting = asyncio.create_task(_next(messages))
        await asyncio.sleep(0)  # it has to wait before it can be cancelled there
        waiting.cancel()
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        has_ended = isinstance(outcome, BaseException)


async def _next(messages: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(messages)


class _KnownPeer:
    """A call's context that says who has called after the call has ended too: grpcio's own crashes the process then.

    Serve's proxy asks for its access log.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._peer = context.peer()

    def peer(self) -> str:
        return str(self._peer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
