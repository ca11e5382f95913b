"""Messages as the links carry them, and strangers who send what they like."""

import asyncio
import contextlib
from typing import Any

import msgspec
import zmq

from serve_app.types.generation import OutputChunk
from serve_app.wire.control_link import ControlServer
from serve_app.wire.links import TokenReceiver
from serve_app.wire.loop_socket import LoopSocket
from serve_app.wire.messages import TokenBatch

EPOCH = 4
CHUNK = OutputChunk(0, 0, [7])
GARBAGE = {
    "nothing": b"",
    "no msgpack": b"\xc1\xff",
    "another structure": msgspec.msgpack.encode({"version": 1}),
    "text that is not UTF-8": b"\x9a\xa6tokens\x01\x04\xa1\xff\x90\x90\x90\x90\x90",
    "a tag that is not UTF-8": b"\x94\xa2\xff\xff\x01\x04\x00",
    "nested too deeply": b"\x95\xa5hello\x01\x04\x00" + b"\x91" * 100_000 + b"\x00",
    "nested too deeply for a Gateway": b"\x9a\xa6tokens\x01\x04\xa1a\x90\x90\x90\x90\x90" + b"\x91" * 100_000 + b"\x00",
}


def batch_of(sender: str, chunks: list[tuple[int, OutputChunk]]) -> TokenBatch:
    """The (stream, chunk) pairs of one step as one message."""
    batch = TokenBatch.empty(sender)
    for stream, chunk in chunks:
        batch.add(stream, chunk)
    return batch


class Strangers:
    """Sockets of whoever else there is on the network."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket[Any]] = []

    def socket(self, socket_type: int, server_key: bytes | None) -> zmq.Socket[Any]:
        """A client socket with some server's key, or none."""
        client = self._context.socket(socket_type)
        self._sockets.append(client)
        if server_key is not None:
            client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
            client.curve_serverkey = server_key
        return client

    def close(self) -> None:
        """Close all."""
        self._context.destroy(linger=0)


class _FoundError(Exception):
    """The message that was waited for has come."""


async def next_message(receiver: ControlServer | TokenReceiver | LoopSocket) -> Any:
    """The next message, whenever it comes; those behind it stay where they are."""
    found: list[Any] = []

    def take(message: Any) -> None:
        found.append(message)
        raise _FoundError

    with contextlib.suppress(_FoundError):
        await receiver.deliver(take)
    return found[0]


async def soon(receiver: ControlServer | TokenReceiver | LoopSocket) -> Any:
    """The next message, within ten seconds."""
    async with asyncio.timeout(10):
        return await next_message(receiver)
