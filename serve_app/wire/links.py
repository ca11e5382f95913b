"""The links beside Serve: between replicas (tokens, calls and replies), and to shards (see control_link).

Sockets are bound to one given address on a random port and encrypted (CurveZMQ, rfc.zeromq.org/spec/26). The server's
public key never crosses the network in clear, and nobody connects without it: it is handed out over Ray only.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from serve_app.types.links import LinkAddress
from serve_app.wire.loop_socket import LoopSocket
from serve_app.wire.messages import PROTOCOL_VERSION, Message, ToGateway, ToReplica
from serve_app.wire.sockets import UNREADABLE, Dropped, bind, make_client, make_server

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_MAX_SOCKETS = 65_000  # of one context; ZeroMQ's own limit is 1,023, fewer than a large cluster has replicas
ReceivedT = TypeVar("ReceivedT", bound=Message)


class Receiver(Generic[ReceivedT]):
    """The end of a link that many send to; listens on loopback, more widely only when asked to."""

    def __init__(self, node: str, messages: Any) -> None:
        self._context = zmq.Context()
        self._bound: zmq.Socket[bytes] = self._context.socket(zmq.PULL)
        server_key = make_server(self._bound)
        self.address = LinkAddress(node, bind(self._bound, LOOPBACK), None, server_key)
        self._socket = LoopSocket(self._bound)
        self._decoder = msgspec.msgpack.Decoder(messages)
        self._dropped = Dropped()

    def listen_wide(self) -> None:
        """Listen on the node's own address too: the cluster has other nodes."""
        if self.address.wide_endpoint is None:
            self.address = replace(self.address, wide_endpoint=bind(self._bound, self.address.node))

    async def deliver(self, take: Callable[[ReceivedT], None]) -> None:
        """Hand every message to `take` as it comes, until cancelled; raises what `take` raises.

        What cannot be read is dropped. What has not been handed on then is found by the next call.
        """
        decode = self._decoder.decode

        def take_payload(payload: bytes) -> None:
            try:
                message: ReceivedT = decode(payload)
            except UNREADABLE as error:
                self._dropped.note(f"unreadable: {error}")
                return
            if message.version == PROTOCOL_VERSION:
                take(message)
            else:
                self._dropped.note(f"protocol version {message.version}")

        await self._socket.deliver(take_payload)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.destroy(linger=0)


class TokenReceiver(Receiver[ToGateway]):
    """A Gateway replica's end of the token link: tokens, states and replies of all its replicas."""

    def __init__(self, node: str) -> None:
        super().__init__(node, ToGateway)


class CallReceiver(Receiver[ToReplica]):
    """A replica's end of the call link: the calls of all Gateways and Graphs."""

    def __init__(self, node: str) -> None:
        super().__init__(node, ToReplica)


class Senders:
    """Ends that send: one socket for each receiver that is known."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._sockets: dict[str, zmq.Socket[Any]] = {}  # by server key
        self._is_full = False  # of open files
        self._encoder = msgspec.msgpack.Encoder()
        self.num_sent_bytes = 0

    def send(self, address: LinkAddress, message: Message) -> bool:
        """Send a message; False when that receiver cannot be reached or takes no more."""
        socket = self._sockets.get(address.server_key)
        if socket is None:
            endpoint = address.local_endpoint if address.node == self._node else address.wide_endpoint
            if endpoint is None:
                return False
            socket = self._open(endpoint, address.server_key)
            if socket is None:
                return False
        payload = self._encoder.encode(message)
        try:
            socket.send(payload, flags=zmq.NOBLOCK)
        except zmq.Again:
            return False
        self.num_sent_bytes += len(payload)
        return True

    def _open(self, endpoint: str, server_key: str) -> zmq.Socket[Any] | None:
        try:
            socket = self._context.socket(zmq.PUSH)
        except zmq.ZMQError as error:
            if error.errno != errno.EMFILE:
                raise
            if not self._is_full:
                self._is_full = True
                logger.error("no socket for one more receiver open=%d: raise `ulimit -n`", len(self._sockets))
            return None
        self._is_full = False
        make_client(socket, server_key)
        socket.connect(endpoint)
        self._sockets[server_key] = socket
        return socket

    def forget(self, address: LinkAddress, linger_ms: int = 0) -> None:
        """Close the socket to a receiver that is gone; what is unsent has `linger_ms` to leave."""
        socket = self._sockets.pop(address.server_key, None)
        if socket is not None:
            socket.close(linger=linger_ms)

    def close(self, linger_ms: int = 0) -> None:
        """Close all sockets; what is unsent has `linger_ms` to leave."""
        self._context.destroy(linger=linger_ms)
