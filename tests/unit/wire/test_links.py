"""The token link over real sockets."""

import resource
import time
from dataclasses import replace

import msgspec
import pytest
import zmq

from serve_app.types.generation import OutputChunk
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState
from serve_app.wire.links import LOOPBACK, Senders, TokenReceiver
from serve_app.wire.messages import PROTOCOL_VERSION, StateMessage, TokenBatch, unpack_batch
from tests.fakes_links import CHUNK, GARBAGE, Strangers, batch_of, soon

STATE = CopyState("replica#1", "ready", "", 0, 0, 8, 8)


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
