"""The control link and the token link over real sockets."""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from serve_app.types.generation import OutputChunk
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState
from serve_app.types.plans import MemoryTaken
from serve_app.types.steps import BatchStep, GrammarChange, StepInput, StepOutput
from serve_app.wire.links import LOOPBACK, ControlAddress, ControlClient, ControlServer, Senders, TokenReceiver
from serve_app.wire.messages import (
    PROTOCOL_VERSION,
    GrammarReadyMessage,
    HeartbeatMessage,
    HelloMessage,
    Message,
    OutputMessage,
    StateMessage,
    StepMessage,
    StopMessage,
    TokenBatch,
    ToRouter,
    unpack_batch,
)
from tests.fakes_links import batch_of

EPOCH = 4
STEP = StepInput(0, [], [1], [1], [3], [[2]], [7], [True])
STATE = CopyState("replica#1", "ready", "", 0, 0, 8, 8)
CHUNK = OutputChunk(0, 0, [7])
FAILED_HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)
GARBAGE = {
    "nothing": b"",
    "no msgpack": b"\xc1\xff",
    "another structure": msgspec.msgpack.encode({"version": 1}),
    "text that is not UTF-8": b"\x9a\xa6tokens\x01\x04\xa1\xff\x90\x90\x90\x90\x90",
    "a tag that is not UTF-8": b"\x94\xa2\xff\xff\x01\x04\x00",
    "nested too deeply": b"\x95\xa5hello\x01\x04\x00" + b"\x91" * 100_000 + b"\x00",
    "nested too deeply for a Gateway": b"\x9a\xa6tokens\x01\x04\xa1a\x90\x90\x90\x90\x90" + b"\x91" * 100_000 + b"\x00",
}


@pytest.fixture
async def server() -> AsyncIterator[ControlServer]:
    server = ControlServer(LOOPBACK, EPOCH, num_shards=2)
    yield server
    server.close()


@pytest.fixture
async def receiver() -> AsyncIterator[TokenReceiver]:
    receiver = TokenReceiver(LOOPBACK)
    yield receiver
    receiver.close()


@pytest.fixture
def links() -> Iterator[Senders]:
    links = Senders(LOOPBACK)
    yield links
    links.close()


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


@pytest.fixture
def strangers() -> Iterator[Strangers]:
    strangers = Strangers()
    yield strangers
    strangers.close()


async def soon(receiver: ControlServer | TokenReceiver) -> Any:
    async with asyncio.timeout(10):
        return await receiver.receive()


async def nothing_comes(receiver: ControlServer | TokenReceiver) -> bool:
    try:
        async with asyncio.timeout(0.2):
            await receiver.receive()
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


# Control link


def run_shard(address: ControlAddress, index: int, received: list[StepInput | BatchStep | None]) -> threading.Thread:
    """A shard that says hello, answers its steps and ends when told to."""

    def run() -> None:
        client = ControlClient(address, index)
        client.send_hello()
        client.heartbeat_sender()(17, 0.5, MemoryTaken(64, 4096))
        while (step := client.receive()) is not None:
            if isinstance(step, GrammarChange):
                client.grammar_sender()(step.number)
                continue
            received.append(step)
            client.send_output(StepOutput(step.step_id, [9]))
        received.append(None)
        client.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


async def test_a_shard_s_whole_life_passes_over_the_control_link(server: ControlServer) -> None:
    received: list[list[StepInput | BatchStep | None]] = [[], []]
    threads = [run_shard(server.address, index, received[index]) for index in range(2)]
    greetings = [await soon(server) for _ in range(4)]
    head = {"version": PROTOCOL_VERSION, "epoch": EPOCH}
    for index in range(2):
        assert HelloMessage(**head, shard_index=index) in greetings
        memory = MemoryTaken(64, 4096)
        beat = HeartbeatMessage(**head, shard_index=index, num_steps_done=17, busy_s=0.5, memory=memory)
        assert beat in greetings
    server.send_step(STEP)
    for _ in range(2):
        assert await soon(server) == OutputMessage(**head, output=StepOutput(0, [9]))
    server.send_grammar(GrammarChange(7, "start: /a/"))
    for _ in range(2):
        assert await soon(server) == GrammarReadyMessage(**head, number=7)
    server.send_stop()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
    assert received == [[STEP, None], [STEP, None]]


@pytest.mark.parametrize(
    "stale",
    [
        HelloMessage(PROTOCOL_VERSION, EPOCH - 1, 0),
        HelloMessage(PROTOCOL_VERSION, EPOCH + 1, 0),
        HelloMessage(PROTOCOL_VERSION + 1, EPOCH, 0),
        OutputMessage(PROTOCOL_VERSION, EPOCH - 1, StepOutput(0, [9])),
    ],
    ids=["epoch before", "epoch after", "other version", "output of a life before"],
)
async def test_a_router_drops_what_is_not_of_its_epoch_and_version(
    server: ControlServer, strangers: Strangers, stale: ToRouter
) -> None:
    client = strangers.socket(zmq.DEALER, server.address.server_key.encode())
    client.connect(server.address.endpoint)
    client.send(msgspec.msgpack.encode(stale))
    fresh = HelloMessage(PROTOCOL_VERSION, EPOCH, 1)
    client.send(msgspec.msgpack.encode(fresh))
    assert await soon(server) == fresh


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_a_router_drops_what_it_cannot_read(server: ControlServer, strangers: Strangers, garbage: bytes) -> None:
    client = strangers.socket(zmq.DEALER, server.address.server_key.encode())
    client.connect(server.address.endpoint)
    fresh = HelloMessage(PROTOCOL_VERSION, EPOCH, 1)
    client.send(garbage)
    client.send_multipart([garbage, garbage, garbage])
    client.send(msgspec.msgpack.encode(fresh))
    assert await soon(server) == fresh


def test_a_shard_drops_what_is_not_of_its_epoch_and_version(strangers: Strangers) -> None:
    public_key, secret_key = zmq.curve_keypair()
    router = strangers.socket(zmq.ROUTER, None)
    router.curve_server, router.curve_secretkey = True, secret_key
    port = router.bind_to_random_port(f"tcp://{LOOPBACK}")
    client = ControlClient(ControlAddress(f"tcp://{LOOPBACK}:{port}", public_key.decode(), EPOCH), 1)
    client.send_hello()
    peer, _hello = router.recv_multipart()
    messages: list[Message] = [
        StepMessage(PROTOCOL_VERSION, EPOCH - 1, replace(STEP, step_id=1)),
        StepMessage(PROTOCOL_VERSION + 1, EPOCH, replace(STEP, step_id=2)),
        StopMessage(PROTOCOL_VERSION, EPOCH - 1),
        StepMessage(PROTOCOL_VERSION, EPOCH, replace(STEP, step_id=3)),
        StopMessage(PROTOCOL_VERSION, EPOCH),
    ]
    for message in messages:
        router.send_multipart([peer, msgspec.msgpack.encode(message)])
    assert client.receive() == replace(STEP, step_id=3)
    assert client.receive() is None
    client.close()


async def test_a_shard_of_the_life_before_gets_no_steps(server: ControlServer) -> None:
    old = ControlClient(replace(server.address, epoch=EPOCH - 1), 0)
    received: list[StepInput | BatchStep | None] = []
    current = run_shard(server.address, 0, received)
    old.send_hello()
    while not isinstance(await soon(server), HelloMessage):
        pass
    server.send_step(STEP)
    while not isinstance(await soon(server), OutputMessage):
        pass
    server.send_stop()
    await asyncio.to_thread(current.join, 10)
    assert old._socket.poll(200) == 0
    old.close()


# Keys


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


# Token link


async def test_tokens_of_one_step_come_as_one_message(receiver: TokenReceiver, links: Senders) -> None:
    chunks = [(1, CHUNK), (2, OutputChunk(1, 3, [8], finish_reason="length"))]
    assert links.send(receiver.address, batch_of("replica#1", chunks))
    batch = await soon(receiver)
    assert isinstance(batch, TokenBatch)
    assert (batch.sender, unpack_batch(batch)) == ("replica#1", chunks)


async def test_states_come_over_the_token_link(receiver: TokenReceiver, links: Senders) -> None:
    message = StateMessage(PROTOCOL_VERSION, 0, "demo", STATE, "Router", receiver.address, None)
    assert links.send(receiver.address, message)
    assert await soon(receiver) == message


async def test_messages_of_one_sender_come_in_order(receiver: TokenReceiver, links: Senders) -> None:
    for index in range(200):
        assert links.send(receiver.address, batch_of("replica#1", [(1, OutputChunk(0, index, [index]))]))
    batches = [await soon(receiver) for _ in range(200)]
    assert [batch.token_ids for batch in batches] == [[index] for index in range(200)]


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_a_gateway_drops_what_it_cannot_read(
    receiver: TokenReceiver, strangers: Strangers, garbage: bytes
) -> None:
    client = strangers.socket(zmq.PUSH, receiver.address.server_key.encode())
    client.connect(receiver.address.local_endpoint)
    fresh = batch_of("replica#1", [(1, CHUNK)])
    client.send(garbage)
    client.send(msgspec.msgpack.encode(msgspec.structs.replace(fresh, version=PROTOCOL_VERSION + 1)))
    client.send_multipart([garbage, garbage])
    client.send(msgspec.msgpack.encode(fresh))
    assert await soon(receiver) == fresh


async def test_a_sender_on_another_node_takes_the_wide_endpoint() -> None:
    receiver = TokenReceiver("127.0.0.2")  # a second address of this machine
    receiver.listen_wide()
    address = receiver.address
    assert address.wide_endpoint is not None
    assert address.wide_endpoint.startswith("tcp://127.0.0.2:")
    near, far = Senders("127.0.0.2"), Senders("127.0.0.3")
    try:
        for sender, broken in ((near, "wide_endpoint"), (far, "local_endpoint")):
            reachable = replace(address, **{broken: "tcp://127.0.0.1:9"})
            assert sender.send(reachable, batch_of("replica#1", [(1, CHUNK)]))
            assert isinstance(await soon(receiver), TokenBatch)
    finally:
        near.close()
        far.close()
        receiver.close()


async def test_listening_wide_twice_keeps_the_first_endpoint(receiver: TokenReceiver) -> None:
    receiver.listen_wide()
    first = receiver.address
    receiver.listen_wide()
    assert receiver.address == first


async def test_another_node_cannot_be_reached_before_the_receiver_listens_wide(receiver: TokenReceiver) -> None:
    links = Senders("127.0.0.3")
    assert not links.send(receiver.address, batch_of("replica#1", [(1, CHUNK)]))
    receiver.listen_wide()
    assert links.send(receiver.address, batch_of("replica#1", [(1, CHUNK)]))
    assert isinstance(await soon(receiver), TokenBatch)
    links.close()


def test_a_sender_says_so_when_a_gateway_takes_no_more(links: Senders) -> None:
    gone = LinkAddress(LOOPBACK, "tcp://127.0.0.1:9", None, zmq.curve_keypair()[0].decode())
    started = time.monotonic()
    num_taken = 0
    while links.send(gone, batch_of("replica#1", [])):
        num_taken += 1
        assert num_taken <= 100_000
    assert num_taken > 1000  # a pause of the receiver is not a reason to give up
    assert time.monotonic() - started < 20


async def test_a_forgotten_gateway_that_comes_back_is_connected_anew(receiver: TokenReceiver, links: Senders) -> None:
    for _ in range(2):
        assert links.send(receiver.address, batch_of("replica#1", [(1, CHUNK)]))
        assert isinstance(await soon(receiver), TokenBatch)
        links.forget(receiver.address)
    links.forget(receiver.address)
    assert links._sockets == {}


async def test_more_receivers_than_zeromq_s_own_limit_of_sockets(receiver: TokenReceiver, links: Senders) -> None:
    address = receiver.address
    others = [replace(address, server_key=zmq.curve_keypair()[0].decode()) for _ in range(1100)]
    assert all(links.send(other, batch_of("replica#1", [(1, CHUNK)])) for other in others)


async def test_no_file_left_for_one_more_socket_is_told_once_and_passes(
    receiver: TokenReceiver, links: Senders, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(receiver.address, server_key=zmq.curve_keypair()[0].decode())
    batch = batch_of("replica#1", [(1, CHUNK)])
    assert links.send(other, batch)  # ZeroMQ has its own files open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # 0, 1 and 2 are taken
    try:
        assert [links.send(receiver.address, batch) for _ in range(2)] == [False, False]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caplog.text.count("raise `ulimit -n`") == 1
    assert links.send(receiver.address, batch)
    assert await soon(receiver) == batch


def test_a_shard_that_is_interrupted_while_it_closes_ends_its_link_once(server: ControlServer) -> None:
    for _ in range(100):
        client = ControlClient(server.address, 0)
        enders = [threading.Thread(target=client.interrupt) for _ in range(2)]
        for thread in enders:
            thread.start()
        client.close()
        for thread in enders:
            thread.join(timeout=10)
            assert not thread.is_alive()
