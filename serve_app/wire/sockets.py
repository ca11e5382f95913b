"""What the sockets of all links have in common: encryption, limits, and a word on what is dropped."""

import logging
from typing import Any

import msgspec
import zmq

from serve_app.wire.messages import PROTOCOL_VERSION

logger = logging.getLogger(__name__)

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what msgspec raises for foreign bytes
_HANDSHAKE_MS = 30_000
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_TOLD = 20  # reasons


class Dropped:
    """What an end of a link has received and cannot use: told once for each reason, however often it comes."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def note(self, reason: str) -> None:
        """Tell it, the first time."""
        if reason in self._told or len(self._told) == _MAX_TOLD:
            return
        self._told.add(reason)
        logger.warning(
            "message dropped reason=%s own_version=%d: processes of different versions of rayshard must not be mixed",
            reason,
            PROTOCOL_VERSION,
        )


def make_server(socket: zmq.Socket[Any]) -> str:
    """Make a socket the server of an encrypted link; gives its public key."""
    public_key, secret_key = zmq.curve_keypair()
    socket.curve_server = True
    socket.curve_secretkey = secret_key
    _limit(socket)
    return public_key.decode()


def make_client(socket: zmq.Socket[Any], server_key: str) -> None:
    """Make a socket a client of the server with this public key."""
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey = server_key.encode()
    _limit(socket)


def _limit(socket: zmq.Socket[Any]) -> None:
    socket.linger = 0
    socket.handshake_ivl = _HANDSHAKE_MS
    socket.maxmsgsize = _MAX_MESSAGE_BYTES
    socket.sndhwm = socket.rcvhwm = 100_000


def bind(socket: zmq.Socket[Any], host: str) -> str:
    """Listen on a free port of one address, IPv4 or IPv6; gives the endpoint."""
    if ":" in host:
        socket.ipv6 = True
        host = f"[{host}]"
    socket.bind(f"tcp://{host}:*")
    endpoint = socket.last_endpoint
    assert isinstance(endpoint, bytes)
    return endpoint.decode().rstrip("\x00")
