"""Who may connect to a link: those with its key, and at its address alone."""

import asyncio
import socket

import msgspec
import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from serve_app.wire.control_link import ControlServer
from serve_app.wire.links import LOOPBACK, TokenReceiver
from serve_app.wire.messages import PROTOCOL_VERSION, HelloMessage, Message
from tests.fakes_links import CHUNK, EPOCH, Strangers, batch_of, next_message

FAILED_HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)


async def nothing_comes(receiver: ControlServer | TokenReceiver) -> bool:
    """Whether no message arrives."""
    try:
        async with asyncio.timeout(0.2):
            await next_message(receiver)
    except TimeoutError:
        return True
    return False


def listens_on(host: str, endpoint: str) -> bool:
    port = int(endpoint.rsplit(":", 1)[1])
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("who", ["no key", "another server's key"])
@pytest.mark.parametrize("link", ["control", "token"])
async def test_nobody_connects_or_sends_without_the_server_s_key(
    server: ControlServer, receiver: TokenReceiver, strangers: Strangers, link: str, who: str
) -> None:
    endpoint = server.address.endpoint if link == "control" else receiver.address.local_endpoint
    key = None if who == "no key" else zmq.curve_keypair()[0]
    stranger = strangers.socket(zmq.DEALER if link == "control" else zmq.PUSH, key)
    monitor = stranger.get_monitor_socket(FAILED_HANDSHAKE | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    stranger.connect(endpoint)
    message: Message = HelloMessage(PROTOCOL_VERSION, EPOCH, 0)
    if link == "token":
        message = batch_of("replica#1", [(1, CHUNK)])
    stranger.send(msgspec.msgpack.encode(message))
    assert await asyncio.to_thread(monitor.poll, 10_000), "nothing came of the handshake"
    event = parse_monitor_message(monitor.recv_multipart())["event"]
    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert await nothing_comes(server if link == "control" else receiver)
    stranger.disable_monitor()
    monitor.close()


async def test_each_server_has_a_key_of_its_own(server: ControlServer, receiver: TokenReceiver) -> None:
    other = ControlServer(LOOPBACK, EPOCH, num_shards=1)
    keys = {server.address.server_key, receiver.address.server_key, other.address.server_key}
    other.close()
    assert len(keys) == 3


async def test_the_links_listen_on_the_given_address_only(server: ControlServer, receiver: TokenReceiver) -> None:
    for endpoint in (server.address.endpoint, receiver.address.local_endpoint):
        assert endpoint.startswith(f"tcp://{LOOPBACK}:")
        assert listens_on(LOOPBACK, endpoint)
        assert not listens_on("127.0.0.2", endpoint)  # would answer if it listened on all
    assert receiver.address.wide_endpoint is None
