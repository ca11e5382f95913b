"""Streams on the server of Serve's proxy, with a real client that leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from ray.serve._private.grpc_util import gRPCGenericServer

from serve_app.gateway.grpc import servicers
from serve_app.protos import rayshard_pb2 as pb
from serve_app.protos import rayshard_pb2_grpc as services


class Source:
    """The handlers of a proxy: messages as large or small as told, and how the wait for the next one ended."""

    def __init__(self) -> None:
        self.num_chars = 1
        self.num_messages = 0
        self.endings: list[str] = []
        self.peers: list[str] = []
        self.has_ended = asyncio.Event()

    def handler(self, **_which: Any) -> Callable[[Any, Any], AsyncGenerator[bytes, None]]:
        async def stream(_request: Any, context: Any) -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield pb.GenerateResponse(text="a" * self.num_chars).SerializeToString()
                    self.num_messages += 1
                    await asyncio.sleep(0.01)
            except BaseException as error:
                self.endings.append(type(error).__name__)
                raise
            finally:
                self.peers.append(context.peer())  # as Serve does for its log
                self.has_ended.set()

        return stream


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def stub(source: Source) -> AsyncIterator[Any]:
    server = gRPCGenericServer(source.handler)
    servicers.add_open_inference(Mock(), server)
    servicers.add_health(Mock(), server)
    servicers.add_rayshard(Mock(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield services.RayshardStub(channel)  # type: ignore[no-untyped-call]
    await server.stop(None)


@pytest.mark.parametrize("num_chars", [1, 2**20])  # waits for the next message; waits for the client to read
async def test_a_client_that_leaves_cancels_its_stream(source: Source, stub: Any, num_chars: int) -> None:
    source.num_chars = num_chars
    stream = stub.Generate(pb.GenerateRequest(text="a"))
    assert (await anext(aiter(stream))).text == "a" * num_chars
    before = -1
    while num_chars > 1 and source.num_messages > before:  # until the connection is full
        before = source.num_messages
        await asyncio.sleep(0.3)
    stream.cancel()
    await asyncio.wait_for(source.has_ended.wait(), 5)
    assert source.endings == ["CancelledError"]
    assert source.peers[0].startswith("ipv4:127.0.0.1:")


async def test_a_message_that_is_ready_does_not_save_a_stream() -> None:
    endings = []

    async def eager(_request: Any, _context: Any) -> AsyncGenerator[bytes, None]:
        yield b"1"
        yield b"2"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            endings.append("cancelled")
        yield b"the status"

    stream = servicers.cancelled_when_left(eager)(None, Mock())
    assert await anext(stream) == b"1"
    await stream.aclose()
    assert endings == ["cancelled"]
